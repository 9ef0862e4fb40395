"""The pictures: bars beside the floor, and latency against the age of a stream. Needs matplotlib."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

from sidebyside import bars as bar
from sidebyside.report import time_text
from sidebyside.shapes import SHAPES

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

OURS, THEIRS, OTHER, FLOOR = "#1f6f8b", "#b9c4cc", "#d98c5f", "#222222"
LINES = {"ours-mamba": OURS, "ours-mamba2": "#63b4cf", "llama": OTHER, "torch": "#a85751"}
#: bars are cut at so many times ours
LONGEST = 8
CASES = {"decode": "one item", "push16": "push of 16", "prefill": "512 items"}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write what the results can fill; returns the files."""
    plt.rcParams |= {
        "font.size": 9,
        "svg.hashsalt": "streamssm",
        "svg.fonttype": "none",  # text as text: a quarter of the size
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    written = []
    groups = results.get("groups", {})
    for tiny in (False, True):
        chosen = [group for group in groups.values() if SHAPES[group["model"]].tiny == tiny]
        if any(bar.case_of(group, "ours", "decode") for group in chosen):
            written.append(_bars(chosen, folder / f"peers-{'tiny' if tiny else '130m'}.svg"))
    if any(line["points"] for line in results.get("age", {}).get("lines", {}).values()):
        written.append(_age(results["age"], folder / "age.svg"))
    return written


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return path


def _bars(groups: list[bar.Group], path: Path) -> Path:
    """A row for each model and precision, a column for each case."""
    heights = [len(_timed(group)) + 1.5 for group in groups]
    figure, axes = plt.subplots(
        len(groups), len(CASES), figsize=(10, 0.24 * sum(heights)), squeeze=False, height_ratios=heights
    )
    for row, group in zip(axes, groups, strict=True):
        for axis, (case, title) in zip(row, CASES.items(), strict=True):
            _panel(axis, group, case)
            axis.set_title(title, loc="left", color="#555555", fontsize=9)
        name = f"{group['model']}, {group['precision']}"
        row[0].set_title(f"{name}    ", loc="right", fontweight="bold", fontsize=9, x=0.0)
    figure.tight_layout()
    return _save(figure, path)


def _timed(group: bar.Group) -> list[str]:
    return [key for key in group["rows"] if bar.case_of(group, key, "decode")]


def _panel(axis: Axes, group: bar.Group, case: str) -> None:
    """Horizontal bars, ours on top; what is inexact is hatched, what is far longer is cut."""
    keys = _timed(group)[::-1]
    own = bar.case_of(group, "ours", case)
    longest = LONGEST * own["median_ns"] if own else float("inf")
    for place, key in enumerate(keys):
        found = bar.case_of(group, key, case)
        if found is None:
            axis.text(0, place, " no", va="center", color="#888888", fontsize=8)
            continue
        exact = group["rows"][key]["exact"].get(case, False)
        value = min(found["median_ns"], longest)
        style = {"color": OURS if key == "ours" else THEIRS, "hatch": None if exact else "///"}
        axis.barh(place, value, edgecolor="white", height=0.8, **style)
        words = [">>" if found["median_ns"] > longest else "", time_text(found["median_ns"])]
        words.append("inexact" if not exact else "" if key == "ours" else f"{found['ratio'] or 0:.1f}x")
        axis.text(value, place, " " + "  ".join(filter(None, words)), va="center", fontsize=8)
    floors = bar.floor_ns(group) if case == "decode" else None
    if floors:
        axis.axvline(statistics.median(floors), color=FLOOR, linewidth=1, linestyle="--")
    titles = [group["rows"][key]["title"] for key in keys]
    axis.set_yticks(range(len(keys)), titles if case == "decode" else [])
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_xlim(0, 1.5 * max(axis.get_xlim()[1], 1e-9))


def _age(age: dict[str, Any], path: Path) -> Path:
    """Time of a step on the left, what a stream keeps on the right."""
    figure, (times, kept) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2))
    for key, line in age["lines"].items():
        points = line["points"]
        if not points:
            continue
        ages = [point["age"] for point in points]
        style = {"color": LINES[key], "marker": "o", "markersize": 4, "label": line["title"]}
        times.loglog(ages, [point["median_ns"] / 1e3 for point in points], **style)
        kept.loglog(ages, [point["bytes"] / 1e6 for point in points], **style)
        if "stopped" in line:
            last = points[-1]
            place = {"textcoords": "offset points", "xytext": (6, -3), "fontsize": 8, "color": LINES[key]}
            times.annotate("stopped: too slow", (last["age"], last["median_ns"] / 1e3), **place)
    times.set_ylabel("one step, us")
    kept.set_ylabel("kept by a stream, MB")
    for axis in (times, kept):
        axis.set_xlabel("age of the stream, items")
        axis.grid(alpha=0.25)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.legend(*times.get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False)
    return _save(figure, path)
