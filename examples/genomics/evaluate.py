"""Score the host model and its peers on the TEST reads.

    python examples/genomics/evaluate.py [--model NAME_OR_FILE] [--no-peers] [--quick]

Prints ROC-AUC after 100, 200 and 400 bases, recall at 0.3 % and 1 % false positives, memory and time;
writes results/scores.json and results/host.png. Needs the packages of fetch.py, and for the peers
`pip install -r examples/genomics/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import footprint
import numpy as np
import testreads
from genomes import DEFAULT_CACHE, DataError
from host_peers import LENGTHS, Alignment, KmerRegression
from host_plot import draw
from intervals import METRICS, Clusters, Comparison, bounds
from rich.console import Console
from rich.table import Table
from testreads import MATCHED, REAL, ReadSet

import streamssm
from streamssm.errors import StreamSSMError

RESULTS = Path(__file__).resolve().parent / "results"
RESAMPLES, BATCH = 500, 256
OURS = "streamssm host"
SAID = {
    "auc": "ROC-AUC",
    "recall_1": "recall at 1 % false positives",
    "recall_0.3": "recall at 0.3 % false positives",
}
GOALS = {("auc", 100): 0.965, ("auc", 200): 0.985}
#: (negatives, error model of the human reads) by kind of row
ROWS = {
    "stated": [(source, "stated") for source in REAL],
    "matched": [(source, MATCHED[source]) for source in REAL],
    "simulated": [(f"ecoli_simulated_{model}", model) for model in ("pacbio", "nanopore", "clean")],
    "starts": [(f"{source}_starts", "stated") for source in REAL],
}

Scores = dict[str, dict[str, np.ndarray]]  # of a detector, by set of reads: [reads, LENGTHS]


def detector(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The model file (or built-in) through the public API."""
    model = streamssm.load(name)
    columns = [n // 100 - 1 for n in LENGTHS]

    def score(bases: np.ndarray) -> np.ndarray:
        parts = np.array_split(bases, -(-len(bases) // BATCH))
        probability = np.concatenate([model.scan(part.astype(np.int64), block=400)[..., 0] for part in parts])
        return probability[:, columns].astype(np.float64)

    return score


def bootstrap(scores: Scores, sets: dict[str, ReadSet]) -> dict[str, np.ndarray]:
    """METRICS [1 + RESAMPLES, detectors, rows, lengths, metrics] of each kind of row, the plain ones first.

    All detectors see the same resamples, so that differences are paired.
    """
    clusters = {name: Clusters(reads.read) for name, reads in sets.items()}
    compared = {
        kind: [
            [
                [Comparison(mine[f"human_{model}"][:, k], mine[source][:, k]) for k in range(len(LENGTHS))]
                for source, model in rows
            ]
            for mine in scores.values()
        ]
        for kind, rows in ROWS.items()
    }
    rng, found = np.random.default_rng(0), {kind: [] for kind in ROWS}
    for draw_ in (None, *[rng] * RESAMPLES):
        weights = {name: c.weights(draw_) for name, c in clusters.items()}
        for kind, detectors in compared.items():
            found[kind].append(
                [
                    [
                        [c.metrics(weights[f"human_{model}"], weights[source]) for c in row]
                        for row, (source, model) in zip(rows, ROWS[kind], strict=True)
                    ]
                    for rows in detectors
                ]
            )
    return {kind: np.array(values) for kind, values in found.items()}


def summary(found: dict[str, np.ndarray], names: list[str]) -> dict:
    """Plain figures and intervals of everything, by kind of row, source, detector and length."""
    table: dict = {}
    for kind, values in found.items():
        rows = [*(source for source, _ in ROWS[kind]), "macro"]
        values = np.concatenate([values, values.mean(2, keepdims=True)], 2)
        table[kind] = {
            row: {name: _figures(values[:, d, r]) for d, name in enumerate(names)}
            for r, row in enumerate(rows)
        }
        if len(names) > 1:
            for r, row in enumerate(rows):
                table[kind][row]["ours less the 4-mer's"] = _figures(values[:, 0, r] - values[:, 1, r])
    return table


def _figures(values: np.ndarray) -> dict:
    """values [1 + RESAMPLES, lengths, metrics] -> by length and metric, the figure and its interval."""
    return {
        str(length): {
            metric: {"value": float(values[0, k, m]), "interval": bounds(values[1:, k, m])}
            for m, metric in enumerate(METRICS)
        }
        for k, length in enumerate(LENGTHS)
    }


def metrics(table: dict, names: list[str]) -> list[dict]:
    """The head of the JSON: the goals, and what they are compared with."""
    macro, rows = table["stated"]["macro"], []
    wanted = [("auc", n) for n in LENGTHS] + [("recall_1", n) for n in (100, 200)] + [("recall_0.3", 100)]
    for metric, length in wanted:
        found = {name: macro[name][str(length)][metric] for name in names}
        goal = GOALS.get((metric, length))
        if (metric, length) == ("recall_1", 100) and len(names) > 1:
            goal = 2 * found[names[1]]["value"]
        rows.append(
            {
                "name": f"{SAID[metric]} after {length} bases, mean of the TEST sources",
                "ours": found[OURS]["value"],
                "interval": found[OURS]["interval"],
                "peers": {name: found[name]["value"] for name in names[1:]},
                "goal": goal,
            }
        )
    return rows


def evaluate(args: argparse.Namespace, status: Callable[[str], None]) -> dict:
    """Build the reads, run everything, and return all that is printed."""
    status("the reads")
    sets = testreads.build(args.cache)
    if args.quick:
        sets = {name: replace(s, bases=s.bases[:500], read=s.read[:500]) for name, s in sets.items()}
    detectors: dict[str, Callable[[np.ndarray], np.ndarray]] = {OURS: detector(args.model)}
    if args.peers:
        status("the 4-mer regression")
        detectors[KmerRegression.name] = KmerRegression.cached(args.cache).scores
    if args.peers and Alignment.installed():
        status("the index of the reference")
        detectors[Alignment.name] = Alignment(args.cache).scores
    scores: Scores = {}
    for name, score in detectors.items():
        scores[name] = {}
        for at, (key, reads) in enumerate(sets.items()):
            status(f"{name}: {key}, {at + 1} of {len(sets)}")
            scores[name][key] = score(reads.bases)
    status("intervals")
    names = list(scores)
    found = bootstrap(scores, sets)
    table = summary(found, names)
    status("memory and time")
    model = streamssm.load(args.model)
    return {
        "model": "host",
        "parameters": model.manifest.parameters,
        "bytes": Path(model.path).stat().st_size,
        "metrics": metrics(table, names),
        "plot": "host.png",
        "detectors": names,
        "table": table,
        "calibration": calibration(scores[OURS]),
        "footprint": footprint.measure(args, sets["human_stated"].bases[:200]),
        "reads": {name: [len(s.bases), len(np.unique(s.read))] for name, s in sets.items()},
    }


def calibration(mine: dict[str, np.ndarray]) -> dict:
    """What share of reads is human where the model says so much, human and microbial reads alike many."""
    edges = np.linspace(0, 1, 11)
    p, q = mine["human_stated"], np.concatenate([mine[source] for source in REAL])
    found = {}
    for k, length in enumerate(LENGTHS):
        h = np.histogram(p[:, k], edges)[0] / len(p)
        m = np.histogram(q[:, k], edges)[0] / len(q)
        found[str(length)] = (h / np.maximum(h + m, 1e-12)).round(4).tolist()
    return {"edges": edges.round(2).tolist(), "human": found}


def show(result: dict, console: Console) -> None:
    """The tables."""
    for kind, rows in result["table"].items():
        table = Table("negatives", "detector", title=TITLES[kind], title_justify="left")
        for heading in ("AUC after", "recall at 1 % FP", "at 0.3 % FP"):
            for length in LENGTHS:
                table.add_column(f"{heading} {length}", justify="right")
        for source, detectors in rows.items():
            for name, by_length in detectors.items():
                cells = [
                    _cell(by_length[str(n)][m], m) for m in ("auc", "recall_1", "recall_0.3") for n in LENGTHS
                ]
                table.add_row(source, name, *cells, end_section=name == list(detectors)[-1])
        console.print(table)
    cost = Table("detector", "memory, MB", "us per 100 bases")
    for name, row in result["footprint"].items():
        cost.add_row(name, f"{row['megabytes']:.0f}", f"{row['us_per_100']:.0f}")
    console.print(cost)
    goals = Table("goal", "ours", "95 %", "4-mer", "wanted", "")
    for row in result["metrics"]:
        if row["goal"] is not None:
            low, high = row["interval"]
            peer = row["peers"].get(KmerRegression.name)
            cells = (f"{row['ours']:.4f}", f"{low:.4f} to {high:.4f}", "" if peer is None else f"{peer:.4f}")
            verdict = "reached" if row["ours"] >= row["goal"] else "missed"
            goals.add_row(row["name"], *cells, f"{row['goal']:.4f}", verdict)
    console.print(goals)


TITLES = {
    "stated": "Real reads against human reads simulated with 12 % errors",
    "matched": "Real reads against human reads simulated with the errors of those reads",
    "simulated": "Control: both simulated with the same errors",
    "starts": "Real reads from their first base on, adapters included, against 12 %",
}


def _cell(figure: dict, metric: str) -> str:
    """The figure and half of its interval."""
    digits = 4 if metric == "auc" else 3
    low, high = figure["interval"]
    return f"{figure['value']:.{digits}f} ±{(high - low) / 2:.{digits}f}"


def main() -> int:
    """Entry point."""
    args = _arguments()
    console, log = Console(width=220), Console(stderr=True)
    try:
        with log.status("starting") as spinner:
            result = evaluate(args, lambda name: spinner.update(f"working on {name}"))
    except (DataError, StreamSSMError, OSError, ImportError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    show(result, console)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, args.results / "host.png")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--model", default="host", help="built-in name or .onnx file")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="ours alone")
    parser.add_argument("--quick", action="store_true", help="the first 500 reads of each source")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON and the plot")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
