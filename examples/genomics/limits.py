"""Why recall is what it is after 100 bases: error rates, and detectors that know the very genomes of TEST.

    python examples/genomics/limits.py [--knows microbes=FILE.pt --knows both=FILE.pt] [--exact 150]

Ours, the 4-mer regression and mappy beside those that no sample allows: networks that `ablation.py` trained
on the TEST genomes, a 4-mer regression that was, alignment to both genomes, and the nearest place in either
by edit distance. Writes results/limits.json; with `--only NAME` the other detectors of that file stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import testreads
import torch
from ablation import KNOWN, known, of_test, recipe
from genomes import DEFAULT_CACHE, DataError, Genomes
from host_model import HOP, load
from host_peers import Alignment, KmerRegression, letters
from host_sources import HUMAN
from host_training import TrainConfig
from intervals import METRICS, Clusters, Comparison, bounds
from rich.console import Console
from rich.table import Table
from testreads import FRAGMENTS, REAL, ReadSet, of_rate, simulated

import streamssm
from streamssm.errors import StreamSSMError

RESULTS = Path(__file__).resolve().parent / "results" / "limits.json"
RESAMPLES, BATCH = 300, 250
RATES = (0.0, 0.05, 0.12, 0.19)
REFERENCES = tuple(KNOWN)
Detector = Callable[[np.ndarray], np.ndarray]  # reads [n, HOP] -> scores [n]


def rows() -> dict[str, list[tuple[str, str]]]:
    """Negatives and positives of each row; a row's figure is the mean over them."""
    found = {"real": [(source, "human_stated") for source in REAL]}
    return found | {
        f"{rate:.2f}": [(f"{group}_{rate:.2f}", f"human_{rate:.2f}") for group in REFERENCES]
        for rate in RATES
    }


def reads(cache: Path, test: Genomes) -> dict[str, ReadSet]:
    """The real reads, and simulated ones of every rate; the first HOP bases of each."""
    built = testreads.build(cache)
    found = {name: built[name] for name in (*REAL, "human_stated")}
    for rate in RATES:
        for seed, group in enumerate((HUMAN, *REFERENCES)):
            name = f"{group}_{rate:.2f}"
            found[name] = simulated(name, test.of(group), of_rate(rate), FRAGMENTS, 300 + seed)
    return {name: replace(s, bases=s.bases[:, :HOP]) for name, s in found.items()}


def shipped(name: str) -> Detector:
    """A model file, or a built-in one."""
    model = streamssm.load(name)

    def score(bases: np.ndarray) -> np.ndarray:
        parts = np.array_split(bases.astype(np.int64), -(-len(bases) // BATCH))
        return np.concatenate([model.scan(part, block=HOP)[:, 0, 0] for part in parts])

    return score


def checkpoint(path: Path) -> Detector:
    """The network of a checkpoint."""
    network, _, _ = load(path)

    @torch.inference_mode()
    def score(bases: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(bases.astype(np.int64)).split(BATCH)
        return torch.cat([network(part)[0][:, 0, 0] for part in parts]).numpy()

    return score


def regression(fitted: KmerRegression) -> Detector:
    """A 4-mer regression, after HOP bases."""
    return lambda bases: fitted.scores(bases, (HOP,))[:, 0]


def both_references(test: Genomes) -> Detector:
    """Matching bases in the human stretch less those in the microbes' genomes, by mappy."""
    import mappy

    def index(groups: tuple[str, ...]) -> mappy.Aligner:
        sequences = "N".join(letters(test.of(group)) for group in groups)
        return mappy.Aligner(seq=sequences, preset=Alignment.preset, best_n=1)

    host, microbes = index((HUMAN,)), index(REFERENCES)

    def score(bases: np.ndarray) -> np.ndarray:
        matched = [[matching(aligner, letters(read)) for aligner in (host, microbes)] for read in bases]
        return np.array([human - microbe for human, microbe in matched], np.float64)

    def matching(aligner: mappy.Aligner, text: str) -> int:
        return max((hit.mlen for hit in aligner.map(text)), default=0)

    return score


def nearest_place(test: Genomes) -> Detector:
    """By how much the human stretch is nearer than the microbes' genomes, in edits of the whole read.

    Every place of both genomes, both strands: about half a second a read.
    """
    import edlib

    targets = [
        letters(test.of(HUMAN)),
        letters(np.concatenate([test.of(group) for group in REFERENCES])),
    ]

    def distance(read: np.ndarray, target: str) -> int:
        strands = (read, np.where(read < 4, 3 - read, read)[::-1])
        found = [edlib.align(letters(s), target, mode="HW", task="distance") for s in strands]
        return min(f["editDistance"] for f in found)

    def score(bases: np.ndarray) -> np.ndarray:
        edits = [[distance(read, target) for target in targets] for read in bases]
        return np.array([microbe - human for human, microbe in edits], np.float64)

    return score


def detectors(args: argparse.Namespace, test: Genomes) -> dict[str, Callable[[], Detector]]:
    """What makes each detector; `--knows` and `--exact` add theirs.

    Raises:
        DataError: one of `--only` is not among them.
    """
    found: dict[str, Callable[[], Detector]] = {
        "host": lambda: shipped(args.model),
        "4-mer": lambda: regression(KmerRegression.cached(args.cache)),
        "4-mer, knows both": lambda: regression(_knowing(args.cache, test)),
    }
    for text in args.knows:
        name, _, path = text.partition("=")
        found[f"host, knows {name}"] = lambda path=path: checkpoint(Path(path))
    if Alignment.installed():
        found["mappy, full reference"] = lambda: _aligned(Alignment(args.cache))
        found["mappy, both references"] = lambda: both_references(test)
    if args.exact:
        found["nearest place in either"] = lambda: nearest_place(test)
    if unknown := [name for name in args.only if name not in found]:
        raise DataError(f"there is no detector {unknown[0]!r}; there are {', '.join(found)}")
    return {name: make for name, make in found.items() if not args.only or name in args.only}


def _aligned(alignment: Alignment) -> Detector:
    return lambda bases: alignment.scores(bases, (HOP,))[:, 0]


def _knowing(cache: Path, test: Genomes) -> KmerRegression:
    """The regression with the genomes of TEST, as the network that knows both."""
    genomes = known(Genomes.load(cache / "train.npz"), test, "both")
    return KmerRegression.trained(genomes, recipe(TrainConfig()).weights, (HOP,))


def figures(score: Detector, sets: dict[str, ReadSet], most: int | None = None) -> dict:
    """METRICS of each row with their intervals, by bootstrap over reads or stretches of the genome."""
    sets = {name: _some(s, most) for name, s in sets.items()}
    scores = {name: score(s.bases) for name, s in sets.items()}
    clusters = {name: Clusters(s.read) for name, s in sets.items()}
    rng, table = np.random.default_rng(0), {}
    for row, pairs in rows().items():
        compared = [(p, n, Comparison(scores[p], scores[n])) for n, p in pairs]
        names = sorted({name for pair in pairs for name in pair})
        values = []
        for generator in (None, *[rng] * RESAMPLES):
            w = {name: clusters[name].weights(generator) for name in names}
            values.append(np.mean([c.metrics(w[p], w[n]) for p, n, c in compared], axis=0))
        plain, drawn = values[0], np.array(values[1:])
        table[row] = {
            m: {"value": float(plain[i]), "interval": bounds(drawn[:, i])} for i, m in enumerate(METRICS)
        }
    return table


def _some(reads: ReadSet, most: int | None) -> ReadSet:
    """At most so many, taken evenly."""
    if most is None or len(reads.bases) <= most:
        return reads
    at = np.linspace(0, len(reads.bases) - 1, most).astype(int)
    return replace(reads, bases=reads.bases[at], read=reads.read[at])


def show(found: dict, console: Console) -> None:
    """The tables: a detector a line."""
    for metric, said in (("auc", "ROC-AUC"), ("recall_1", "recall at 1 % false positives")):
        table = Table("detector", title=f"{said}, after {HOP} bases", title_justify="left")
        for row in rows():
            table.add_column(row if row == "real" else f"both {float(row):.0%}", justify="right")
        for name, by_row in found.items():
            cells = [by_row[row][metric] for row in rows()]
            table.add_row(
                name,
                *(f"{c['value']:.3f} ({c['interval'][0]:.3f}-{c['interval'][1]:.3f})" for c in cells),
            )
        console.print(table)


def main() -> int:
    """Entry point."""
    args, console, log = _arguments(), Console(width=180), Console(stderr=True)
    try:
        stored = json.loads(args.json.read_text()) if args.only and args.json.exists() else {}
        found = stored.get("detectors", {})
        with log.status("the reads") as spinner:
            test = of_test(args.cache)
            sets = reads(args.cache, test)
            for name, make in detectors(args, test).items():
                spinner.update(f"working on {name}")
                found[name] = figures(make(), sets, args.exact if name.startswith("nearest") else args.reads)
    except (DataError, StreamSSMError, OSError, ValueError, ImportError) as error:
        print(f"limits: {error}", file=sys.stderr)
        return 1
    show(found, console)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"bases": HOP, "rows": rows(), "detectors": found}, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--model", default="host", help="built-in name or .onnx file")
    parser.add_argument("--knows", action="append", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--exact", type=int, default=0, help="reads of each set for the nearest place")
    parser.add_argument("--reads", type=int, help="of each set, for a quick look")
    parser.add_argument("--only", action="append", default=[], help="run this detector alone")
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
