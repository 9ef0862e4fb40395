"""ROC-AUC by ranks: the chance that a speech frame scores above a frame without speech."""

from __future__ import annotations

import numpy as np


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve; ties count one half. NaN where one of the classes is missing."""
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels).ravel() > 0
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[place]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
