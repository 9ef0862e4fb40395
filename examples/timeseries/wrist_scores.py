"""Macro-F1 with intervals by bootstrap over people, of whom there are only ten: windows of one person are
not independent, so that people are drawn, never windows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DRAWS, SEED = 10_000, 1


def confusion(labels: np.ndarray, chosen: np.ndarray, people: np.ndarray, classes: int = 7) -> np.ndarray:
    """How often each class was taken for each, by person: [people, label, chosen]."""
    who = np.unique(people, return_inverse=True)[1]
    table = np.zeros((who.max() + 1, classes, classes), np.int64)
    np.add.at(table, (who, labels, chosen), 1)
    return table


def f1(tables: np.ndarray) -> np.ndarray:
    """Macro-F1 of tables [..., label, chosen]; a class that is neither there nor chosen counts as 0."""
    hits = tables.diagonal(axis1=-2, axis2=-1)
    return (2 * hits / np.maximum(tables.sum(-1) + tables.sum(-2), 1)).mean(-1)


def macro_f1(labels: np.ndarray, chosen: np.ndarray) -> float:
    """The mean over classes of F1."""
    return float(f1(confusion(labels, chosen, np.zeros(len(labels), int))[0]))


def interval(tables: np.ndarray, other: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of the macro-F1 over all people of tables [people, label, chosen]; with ``other`` of the
    difference to its macro-F1, on the same draws of people."""
    drawn = np.random.default_rng(SEED).integers(0, len(tables), (DRAWS, len(tables)))
    scores = f1(tables[drawn].sum(1))
    if other is not None:
        scores = scores - f1(other[drawn].sum(1))
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def furthest(found: Mapping[str, Mapping[str, float]], of: str = "float32") -> float:
    """The largest difference of a score to the one of the same name of ``of``; bytes are none."""
    return max(abs(found[of][n] - row[n]) for row in found.values() for n in found[of] if n != "bytes")
