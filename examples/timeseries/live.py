"""Watches a live source for so many seconds of data, and draws what the model said of it.

    python examples/timeseries/live.py mqtt://127.0.0.1/gym/wrist --seconds 84 --plot live.png
    python examples/timeseries/live.py tail:wrist.csv --seconds 84

`send.py` plays the other part. Probabilities of all seven exercises against time; gaps are grey.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from wrist_data import LABELS

import streamssm
from streamssm.errors import StreamSSMError

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555")
RATE = 50


def watch(source: str, model: str, seconds: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the decisions, and those of the gaps, of so many seconds."""
    reading = {} if source.startswith("mqtt") else {"time_column": "time"}
    items, gaps, said = [], [], ""
    with streamssm.load(model).run(source, emit="items", **reading) as run:
        for row in run:
            if "gap" in row:
                gaps.append(row)
                continue
            items.append(row)
            label = max(LABELS, key=row.__getitem__)
            if label != said and row[label] > 0.6:
                print(f"{row['time']:7.2f} s  {label} {row[label]:.2f}", flush=True)
                said = label
            if row["time"] >= seconds - 1 / RATE:
                break
    return items, gaps


def draw(
    path: Path, items: list[dict[str, Any]], gaps: list[dict[str, Any]], begins: dict[float, str]
) -> None:
    """Probabilities against time."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    times = np.array([row["time"] for row in items])
    for label, colour in zip(LABELS, COLOURS, strict=True):
        axes.plot(times, [row[label] for row in items], color=colour, lw=1.4, label=label.replace("_", " "))
    for gap in gaps:
        axes.axvspan(gap["time"], gap["time"] + gap["items"] / RATE, color="#999", alpha=0.35, lw=0)
    for begin, label in begins.items():
        axes.axvline(begin, color="#000", lw=0.6, ls=":")
        axes.annotate(label.replace("_", " "), (begin + 0.3, 1.03), fontsize=7, annotation_clip=False)
    axes.set(xlabel="seconds of data (grey: never arrived)", ylabel="probability", ylim=(0, 1.0))
    axes.set(xlim=(0, times[-1]))
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Entry point."""
    args = _arguments()
    begins = {float(second): label for second, label in (pair.split("=") for pair in args.begin)}
    try:
        items, gaps = watch(args.source, args.model, args.seconds)
        if args.plot:
            draw(args.plot, items, gaps, begins)
    except (StreamSSMError, OSError) as error:
        print(f"live: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{len(items)} decisions, {len(gaps)} gaps", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="mqtt://HOST/TOPIC, tail:FILE, or anything that `streamssm run` reads")
    parser.add_argument("--model", default="wrist", help="built-in name or .onnx file")
    parser.add_argument("--seconds", type=float, default=84.0, help="of data, then stop")
    parser.add_argument("--plot", type=Path, help="draw here")
    parser.add_argument("--begin", nargs="*", default=[], metavar="SECOND=EXERCISE", help="what was done")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
