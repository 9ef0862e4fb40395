"""The picture of the evaluation: what is gained at 100 and 200 bases, source by source."""

from __future__ import annotations

from pathlib import Path


def draw(result: dict, path: Path) -> None:
    """AUC and recall at 1 % false positives by bases read, on the real reads, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, detectors = result["table"]["stated"], result["detectors"]
    figure, axes = plt.subplots(
        2, len(rows), figsize=(3 * len(rows), 5.2), sharey="row", layout="constrained"
    )
    for column, (source, found) in enumerate(rows.items()):
        for axis, metric in zip(axes[:, column], ("auc", "recall_1"), strict=True):
            for place, name in enumerate(detectors):
                _line(axis, found[name], metric, place)
            axis.set_xticks([100, 200, 400])
            axis.grid(alpha=0.3)
        axes[0, column].set_title(source.replace("_", " "), fontsize=10)
        axes[1, column].set_xlabel("bases read")
    axes[0, 0].set_ylabel("ROC-AUC")
    axes[1, 0].set_ylabel("recall at 1 % false positives")
    axes[0, -1].legend(detectors, fontsize=7, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(axis, by_length: dict, metric: str, place: int) -> None:
    """One detector; a little to the side of the others, so that whiskers can be told apart."""
    lengths = [int(n) for n in by_length]
    values = [by_length[str(n)][metric] for n in lengths]
    middle = [v["value"] for v in values]
    errors = [
        [v["value"] - v["interval"][0] for v in values],
        [v["interval"][1] - v["value"] for v in values],
    ]
    axis.errorbar([n + 4 * place for n in lengths], middle, errors, marker="o", markersize=3, capsize=2)
