"""Score voice activity detectors on the TEST mixture: ours, and the peers that are installed.

    python examples/audio/evaluate.py [--checkpoint FILE.pt] [--model NAME_OR_FILE] [--out FOLDER]

Prints ROC-AUC over 10 ms frames, misses at 5 % false alarms, onset latency and cost, all without any
time shift, with 95 % intervals bootstrapped over scenes; FOLDER gets scores.json and scores.png.
Peers: pip install -r examples/audio/requirements.txt && pip install --no-deps silero-vad
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measures
import numpy as np
import testmix
from dataset import HOP, RATE, DataError
from fetch import DEFAULT_CACHE
from measures import Counts
from peers import PEERS, Scorer
from rich.console import Console
from rich.table import Table
from testmix import LANGUAGES, Scene

from streamssm.atomic import replacing

HARD_SNR_DB = -5  # scored by themselves: not part of the mixture of 0 to 20 dB
OURS = "streamssm vad"


@dataclass(frozen=True)
class Detector:
    """What one detector said, and what that took."""

    name: str
    counts: Counts  # of the scenes of 0 to 20 dB, then those of -5 dB
    seconds_per_hour: float
    onset: dict[str, float | None]


@dataclass(frozen=True)
class Material:
    """The mixture of 0 to 20 dB followed by the scenes at -5 dB, as one signal."""

    scenes: list[Scene]
    main: int  # how many scenes are of 0 to 20 dB
    audio: np.ndarray
    labels: np.ndarray

    @classmethod
    def build(cls, cache: Path) -> Material:
        """Both mixtures from the recordings of TEST."""
        main = testmix.build(cache)
        scenes = main + testmix.build(cache, seed=testmix.SEED + 1, snrs_db=(HARD_SNR_DB,))
        return cls(scenes, len(main), *testmix.signal(scenes))

    def parts(self) -> dict[str, np.ndarray]:
        """Names of parts, and which scenes they hold; all but "-5 dB" are of 0 to 20 dB."""
        main = range(self.main)
        found = {"0 to 20 dB": list(main)}
        for snr in (HARD_SNR_DB, *testmix.SNRS_DB):
            found[f"{snr} dB"] = [i for i, s in enumerate(self.scenes) if s.snr_db == snr]
        for speech in testmix.SPEECH:
            found[LANGUAGES[speech]] = [i for i in main if self.scenes[i].speech == speech]
        for noise in testmix.NOISE:
            found[noise] = [i for i in main if self.scenes[i].noise == noise]
        return {name: np.array(rows) for name, rows in found.items()}


def exported(name: str) -> Scorer:
    """A model file (or built-in) through the public API, in blocks of one second."""
    import streamssm

    model = streamssm.load(name)
    return lambda x: model.scan(x, block=RATE)[:, 0]


def checkpoint(path: Path) -> Scorer:
    """A training checkpoint in torch, ten seconds at a time."""
    import torch
    from model import load

    torch.set_num_threads(1)
    network, _, _ = load(path)

    def score(x: np.ndarray) -> np.ndarray:
        scores, state = [], None
        with torch.inference_mode():
            for block in np.split(x, range(10 * RATE, len(x), 10 * RATE)):
                logits, state = network(torch.from_numpy(block[None]), state)
                scores.append(logits[0, :, 0].numpy())
        return np.concatenate(scores)

    return score


def remembered(name: str, scorer: Scorer, audio: np.ndarray, folder: Path) -> np.ndarray:
    """Scores of a peer, kept in `folder`: neither peers nor TEST change."""
    heard = hashlib.sha256(audio.tobytes()).hexdigest()[:12]
    path = folder / f"{name.lower().replace(' ', '_').replace(',', '')}-{heard}.npz"
    if not path.exists():
        scores = np.asarray(scorer(audio), np.float64)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            np.savez(scratch, scores=scores)
    with np.load(path) as file:
        return file["scores"]


def run(name: str, scorer: Scorer, material: Material, folder: Path | None = None) -> Detector:
    """One detector over everything, as one stream; with a folder, what it said before counts."""
    if folder is None:
        scores = np.asarray(scorer(material.audio), np.float64)
    else:
        scores = remembered(name, scorer, material.audio, folder)
    if scores.shape != material.labels.shape:
        raise DataError(f"{name} gave scores of shape {scores.shape} for {len(material.labels)} frames")
    frames = material.main * testmix.SCENE_FRAMES
    heard, labels = scores[:frames], material.labels[:frames]
    onset = measures.onset_latency(heard, labels, measures.threshold(heard, labels))
    counts = Counts.of(scores, material.labels, len(material.scenes))
    return Detector(name, counts, hour_of(scorer, material.audio), onset)


def hour_of(scorer: Scorer, audio: np.ndarray) -> float:
    """Seconds of processor time for an hour of audio, from one minute after a short first call."""
    scorer(audio[: 2 * RATE])
    began = time.process_time()
    scorer(audio[: 60 * RATE])
    return (time.process_time() - began) * 60


def push_cost(name: str, x: np.ndarray) -> dict[str, float]:
    """Seconds for an hour of audio in pushes of 10 ms, by the stream's block: medians of seven runs."""
    import streamssm

    model, chunks = streamssm.load(name), x[: 30 * RATE].reshape(-1, HOP)
    costs = {}
    for block in sorted({HOP, model.manifest.block}):
        spent = []
        for _ in range(7):
            stream, began = model.stream(block=block), time.process_time()
            for chunk in chunks:
                stream.push(chunk)
            spent.append(time.process_time() - began)
        costs[f"{1000 * block // RATE} ms"] = statistics.median(spent) / (chunks.size / RATE) * 3600
    return costs


def int8(name: str, material: Material) -> float:
    """ROC-AUC at 0 to 20 dB with the weights of the linear layers in 8 bits."""
    from streamssm.export import quantize

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vad_int8.onnx"
        quantize(name, file, "int8")
        detector = run("int8", exported(str(file)), material)
    return float(detector.counts.rows(np.arange(material.main)).auc()[0])


def compare(detectors: list[Detector], material: Material) -> dict[str, dict[str, dict]]:
    """Part -> detector -> ROC-AUC, its interval, and ours less it with that interval."""
    table: dict[str, dict[str, dict]] = {}
    for part, rows in material.parts().items():
        weights = measures.draws(len(rows))
        drawn = {d.name: d.counts.rows(rows).auc(weights) for d in detectors}
        table[part] = {
            d.name: {
                "auc": float(d.counts.rows(rows).auc()[0]),
                "interval": measures.interval(drawn[d.name]),
                "ahead": float((detectors[0].counts.rows(rows).auc() - d.counts.rows(rows).auc())[0]),
                "ahead_interval": measures.interval(drawn[detectors[0].name] - drawn[d.name]),
            }
            for d in detectors
        }
    return table


def misses(detectors: list[Detector], material: Material) -> dict[str, dict]:
    """Detector -> share of speech frames missed at 5 % false alarms, 0 to 20 dB."""
    rows, weights = np.arange(material.main), measures.draws(material.main)
    counts = {d.name: d.counts.rows(rows) for d in detectors}
    return {
        name: {"share": float(c.misses()[0]), "interval": measures.interval(c.misses(weights))}
        for name, c in counts.items()
    }


def evaluate(args: argparse.Namespace, status: Callable[[str], None]) -> dict:
    """Build the mixture, run everything, and return all that is printed."""
    ours = checkpoint(args.checkpoint) if args.checkpoint else exported(args.model)
    status("the mixture")
    material = Material.build(args.cache)
    status("ours")
    detectors, missing = [run(OURS, ours, material)], []
    for peer in PEERS:
        status(peer.name)
        if peer.installed():
            detectors.append(run(peer.name, peer.score, material, args.cache / "scores" / peer.version()))
        else:
            missing.append(f"{peer.name}: not installed: pip install {peer.install}")
    result = {
        "seconds": len(material.audio) / RATE,
        "speech_share": float(material.labels.mean()),
        "parts": compare(detectors, material),
        "misses": misses(detectors, material),
        "onset": {d.name: d.onset for d in detectors},
        "seconds_per_hour": {d.name: d.seconds_per_hour for d in detectors},
        "missing": missing,
    }
    if not args.checkpoint:
        status("8-bit weights, live pushes")
        result["int8"] = int8(args.model, material)
        result["live_seconds_per_hour"] = push_cost(args.model, material.audio)
    return result


def show(result: dict, console: Console) -> None:
    """The tables."""
    names = list(result["misses"])
    title = f"TEST: {result['seconds']:.0f} s, {result['speech_share']:.0%} speech; ROC-AUC by part"
    table = Table("", *names, "ahead of the best peer", title=title, title_justify="left")
    for part, row in result["parts"].items():
        cells = [f"{row[n]['auc']:.4f}" for n in names]
        low, high = row[names[0]]["interval"]
        cells[0] += f" [{low:.4f}, {high:.4f}]"
        table.add_row(part, *cells, _lead(row, names[1:]))
    shares = [f"{m['share']:.1%}" for m in result["misses"].values()]
    table.add_row("missed at 5 % false alarms", *shares, "")
    onset = (
        ("median_ms", "onset, median ms", ".0f"),
        ("p90_ms", "onset, 90 % within ms", ".0f"),
        ("lost", "onsets lost", ".1%"),
    )
    for key, label, form in onset:
        values = [result["onset"][n][key] for n in names]
        table.add_row(label, *("-" if v is None else format(v, form) for v in values), "")
    table.add_row(
        "processor seconds for an hour", *(f"{v:.1f}" for v in result["seconds_per_hour"].values()), ""
    )
    console.print(table)
    for note in result["missing"]:
        console.print(note, markup=False)
    if "int8" in result:
        console.print(f"ours with int8 weights, 0 to 20 dB: {result['int8']:.4f}")
    for block, cost in result.get("live_seconds_per_hour", {}).items():
        console.print(f"ours, live in 10 ms pushes, blocks of {block}: {cost:.1f} s for an hour")


def _lead(row: dict, peers: list[str]) -> str:
    if not peers:
        return ""
    best = max(peers, key=lambda n: row[n]["auc"])
    low, high = row[best]["ahead_interval"]
    return f"{row[best]['ahead']:+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> int:
    """Entry point."""
    args = _arguments()
    console, log = Console(width=None if sys.stdout.isatty() else 170), Console(stderr=True)
    try:
        with log.status("starting") as spinner:
            result = evaluate(args, lambda name: spinner.update(f"working on {name}"))
        show(result, console)
        if args.out:
            import results

            results.write(result, args.model, args.out)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    except (DataError, OSError, ImportError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--model", default="vad", help="built-in name or .onnx file")
    parser.add_argument("--checkpoint", type=Path, help="score this .pt file instead")
    parser.add_argument("--out", type=Path, help="write scores.json and its picture into this folder")
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args()
    if args.checkpoint and args.out:
        parser.error("--out describes a model file: export the checkpoint, then give it as --model")
    return args


if __name__ == "__main__":
    sys.exit(main())
