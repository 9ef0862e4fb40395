"""Quantise the voice activity model and score it on the TEST mixture: float32, int8, int4.

    python examples/audio/quantise.py [--model NAME_OR_FILE] [--out FOLDER] [--per-layer] [--json FILE]

Needs the recordings of `fetch.py --only test`. The bars: int8 within 0.002 of the ROC-AUC of float32,
int4 within 0.01; exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import testmix
from dataset import DataError
from fetch import DEFAULT_CACHE
from rich.console import Console
from rich.table import Table

from streamssm.errors import StreamSSMError
from streamssm.export import quantize
from streamssm.export.quantize_report import Report

BARS = {"int8": 0.002, "int4": 0.01}


def reports(args: argparse.Namespace, folder: Path, status: Callable[[str], None]) -> list[Report]:
    """Quantise to each type, scoring on the mixture."""
    status("the mixture")
    x, labels = testmix.signal(testmix.build(args.cache))
    return [
        quantize(
            args.model,
            folder / f"vad_{weights}.onnx",
            weights,
            exclude=args.exclude,
            block_size=args.block,
            data=(x, labels),
            per_layer=args.per_layer,
            progress=lambda what, done, total, weights=weights: status(f"{weights}: {what} {done}/{total}"),
        )
        for weights in BARS
    ]


def show(found: list[Report], console: Console) -> None:
    """One row for each type, then one for each layer."""
    table = Table("weights", "ROC-AUC", "change", "bar", "bytes", title_justify="left")
    table.add_row("float32", f"{found[0].baseline:.4f}", "", "", f"{found[0].bytes[0]:,}")
    for report in found:
        change = f"{report.total.metric - report.baseline:+.4f}"
        bar, size = f"{-BARS[report.weights]}", f"{report.bytes[1]:,}"
        table.add_row(report.weights, f"{report.total.metric:.4f}", change, bar, size)
    console.print(table)
    detail = Table("layer", *(f"{report.weights}, alone" for report in found))
    effects = [{row.name: row.effect for row in report.layers if row.effect} for report in found]
    for name in dict.fromkeys(name for alone in effects for name in alone):
        changes = zip(effects, found, strict=True)
        cells = (f"{e[name].metric - r.baseline:+.4f}" if name in e else "float32" for e, r in changes)
        detail.add_row(name, *cells)
    if detail.row_count:
        console.print(detail)


def main() -> int:
    """Entry point."""
    args = _arguments()
    console, log = Console(), Console(stderr=True)
    try:
        with log.status("starting") as spinner, tempfile.TemporaryDirectory() as scratch:
            found = reports(args, args.out or Path(scratch), spinner.update)
    except (DataError, StreamSSMError, OSError) as error:
        print(f"quantise: {error}", file=sys.stderr)
        return 1
    show(found, console)
    if args.json:
        args.json.write_text(json.dumps([report.to_dict() for report in found], indent=2) + "\n")
    missed = [r.weights for r in found if r.total.metric < r.baseline - BARS[r.weights]]
    if missed:
        print(f"quantise: below the bar: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--model", default="vad", help="built-in name or .onnx file")
    parser.add_argument("--out", type=Path, help="keep the files in this folder")
    parser.add_argument("--exclude", action="append", default=[], help="leave layers of such names float32")
    parser.add_argument("--block", type=int, default=128, help="inputs that share a scale")
    parser.add_argument("--per-layer", action="store_true", help="also score each layer by itself")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
