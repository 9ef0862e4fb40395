"""What 8-bit and 4-bit weights cost on the TEST reads: each metric beside that of float32.

    python examples/genomics/quantise.py FLOAT32.onnx [--reads N] [--json FILE]

FLOAT32 is what `export_model.py --float32` keeps. The bar: int8 within 0.003 of every metric of float32; exit
code 1 where it is missed. int4 is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import testreads
from evaluate import ROWS, detector
from export_model import BLOCK_SIZE
from genomes import DEFAULT_CACHE, DataError
from host_peers import LENGTHS
from intervals import METRICS, Comparison
from rich.console import Console
from rich.table import Table
from testreads import ReadSet

from streamssm.errors import StreamSSMError
from streamssm.export import quantize

BAR = 0.003


def macro(model: str, sets: dict[str, ReadSet]) -> np.ndarray:
    """METRICS over the real sources [lengths, metrics]."""
    score = detector(model)
    scores = {name: score(sets[name].bases) for row in ROWS["stated"] for name in (row[0], f"human_{row[1]}")}
    found = [
        [Comparison(p[:, k], n[:, k]).metrics(np.ones(len(p)), np.ones(len(n))) for k in range(len(LENGTHS))]
        for n, p in ((scores[source], scores[f"human_{model}"]) for source, model in ROWS["stated"])
    ]
    return np.mean(found, axis=0)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("float32", type=Path)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--reads", type=int, default=10**9, help="of each source, for a quick look")
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args()
    try:
        found, sizes = _measured(args)
    except (DataError, StreamSSMError, OSError) as error:
        print(f"quantise: {error}", file=sys.stderr)
        return 1
    columns = [f"{metric}, {n}" for n in LENGTHS for metric in METRICS]
    table = Table("macro over TEST sources", *found, *(f"{name} less float32" for name in list(found)[1:]))
    for at, column in enumerate(columns):
        values = [float(values.ravel()[at]) for values in found.values()]
        table.add_row(column, *(f"{v:.4f}" for v in values), *(f"{v - values[0]:+.4f}" for v in values[1:]))
    table.add_row("bytes", *(f"{size:,}" for size in sizes.values()))
    Console(width=140).print(table)
    if args.json:
        rows = {
            name: dict(zip(columns, values.ravel().tolist(), strict=True)) for name, values in found.items()
        }
        args.json.write_text(json.dumps({"metrics": rows, "bytes": sizes}, indent=1) + "\n")
    worst = float(np.abs(found["int8"] - found["float32"]).max())
    print(f"int8: the largest difference is {worst:.4f}, the bar {BAR}")
    return 1 if worst > BAR else 0


def _measured(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """METRICS and bytes of each type of weights."""
    sets = testreads.build(args.cache)
    sets = {name: replace(s, bases=s.bases[: args.reads]) for name, s in sets.items()}
    with tempfile.TemporaryDirectory() as scratch:
        files = {"float32": args.float32}
        for weights in ("int8", "int4"):
            files[weights] = Path(scratch) / f"{weights}.onnx"
            quantize(str(args.float32), files[weights], weights, block_size=BLOCK_SIZE, per_layer=False)
        found = {name: macro(str(path), sets) for name, path in files.items()}
        return found, {name: path.stat().st_size for name, path in files.items()}


if __name__ == "__main__":
    sys.exit(main())
