"""How good scores are, given labels. Only numpy here: training scripts use them too."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def roc_auc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties one half.

    NaN where one of the classes is missing.
    """
    scores, positive = np.asarray(scores).ravel(), np.asarray(labels).ravel() > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def accuracy(scores: Array, labels: Array) -> float:
    """The share of items whose largest column is the labelled one; NaN where there are none."""
    if not labels.size:
        return float("nan")
    return float(np.mean(np.argmax(scores, axis=-1) == labels))
