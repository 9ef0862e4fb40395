"""Score voice activity detectors on the TEST mixture: ours, and the peers that are installed.

    python examples/audio/evaluate.py [--checkpoint FILE.pt] [--model NAME_OR_FILE] [--json FILE]

Prints ROC-AUC over 10 ms frames, without any time shift, and how much of one core each takes.
Peers: pip install -r examples/audio/requirements.txt && pip install --no-deps silero-vad
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import testmix
from dataset import HOP, RATE, DataError
from fetch import DEFAULT_CACHE
from peers import PEERS, Scorer
from rich.console import Console
from rich.table import Table
from testmix import Scene

from streamssm.export.metrics import roc_auc


@dataclass(frozen=True)
class Score:
    """One row of the table; `auc` is None for a detector that is not here."""

    name: str
    auc: float | None
    real_time_factor: float | None = None
    note: str = ""


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


def timed(
    name: str, scorer: Scorer, x: np.ndarray, labels: np.ndarray, note: str = ""
) -> tuple[Score, np.ndarray]:
    """Run one detector over everything; its row of the table and its scores."""
    began = time.perf_counter()
    scores = scorer(x)
    factor = (time.perf_counter() - began) / (len(x) / RATE)
    if scores.shape != labels.shape:
        raise DataError(f"{name} gave scores of shape {scores.shape} for {len(labels)} frames")
    return Score(name, roc_auc(scores, labels), factor, note), scores


def push_factor(name: str, x: np.ndarray) -> dict[str, float]:
    """Real-time factor of 10 ms pushes into one stream, for blocks of 10 ms and the default."""
    import streamssm

    model, chunks = streamssm.load(name), x[: 30 * RATE].reshape(-1, HOP)
    factors = {}
    for block in sorted({HOP, model.manifest.block}):
        stream, began = model.stream(block=block), time.perf_counter()
        for chunk in chunks:
            stream.push(chunk)
        factors[f"{1000 * block // RATE} ms"] = (time.perf_counter() - began) / (chunks.size / RATE)
    return factors


def breakdown(scenes: list[Scene], scores: np.ndarray) -> dict[str, dict[str, float]]:
    """AUC by SNR, by speech source and by noise source."""
    parts = np.split(scores, len(scenes))
    keys: dict[str, Callable[[Scene], str]] = {
        "SNR": lambda s: f"{s.snr_db} dB",
        "speech": lambda s: s.speech,
        "noise": lambda s: s.noise,
    }
    return {title: _grouped(scenes, parts, key) for title, key in keys.items()}


def _grouped(scenes: list[Scene], parts: list[np.ndarray], key: Callable[[Scene], str]) -> dict[str, float]:
    groups: dict[str, list[int]] = {}
    for i, scene in enumerate(scenes):
        groups.setdefault(key(scene), []).append(i)
    return {
        name: roc_auc(
            np.concatenate([parts[i] for i in rows]), np.concatenate([scenes[i].labels for i in rows])
        )
        for name, rows in sorted(groups.items(), key=lambda item: _natural(item[0]))
    }


def _natural(name: str) -> tuple[int, str]:
    head = name.split()[0]
    return (int(head) if head.isdigit() else 0, name)


def evaluate(args: argparse.Namespace, status: Callable[[str], None]) -> dict:
    """Build the mixture, run everything, and return all that is printed."""
    ours = checkpoint(args.checkpoint) if args.checkpoint else exported(args.model)
    status("the mixture")
    scenes = testmix.build(args.cache)
    x, labels = testmix.signal(scenes)
    status("ours")
    first, scores = timed("streamssm vad", ours, x, labels, "in long blocks; live: see below")
    rows = [first]
    for peer in PEERS:
        status(peer.name)
        if peer.installed():
            rows.append(timed(peer.name, peer.score, x, labels)[0])
        else:
            rows.append(Score(peer.name, None, note=f"not installed: pip install {peer.install}"))
    result = {
        "seconds": testmix.seconds(scenes),
        "speech_share": float(labels.mean()),
        "rows": [vars(r) for r in rows],
        "breakdown": breakdown(scenes, scores),
    }
    if not args.checkpoint:
        result["live"] = push_factor(args.model, x)
    return result


def show(result: dict, console: Console) -> None:
    """The tables."""
    title = f"TEST mixture: {result['seconds']:.0f} s, {result['speech_share']:.0%} speech"
    table = Table("detector", "ROC-AUC", "real-time factor", "", title=title, title_justify="left")
    for row in result["rows"]:
        auc = "-" if row["auc"] is None else f"{row['auc']:.4f}"
        factor = "-" if row["real_time_factor"] is None else f"{row['real_time_factor']:.4f}"
        table.add_row(row["name"], auc, factor, row["note"])
    console.print(table)
    detail = Table("ours, by", "", "ROC-AUC")
    for title, rows in result["breakdown"].items():
        for name, auc in rows.items():
            detail.add_row(title, name, f"{auc:.4f}")
    console.print(detail)
    for block, factor in result.get("live", {}).items():
        console.print(f"ours, pushed live in 10 ms chunks, blocks of {block}: real-time factor {factor:.4f}")


def main() -> int:
    """Entry point."""
    args = _arguments()
    console, log = Console(), Console(stderr=True)
    try:
        with log.status("starting") as spinner:
            result = evaluate(args, lambda name: spinner.update(f"working on {name}"))
    except (DataError, OSError, ImportError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    show(result, console)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--model", default="vad", help="built-in name or .onnx file")
    parser.add_argument("--checkpoint", type=Path, help="score this .pt file instead")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
