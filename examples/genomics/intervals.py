"""ROC-AUC and recall at a false positive rate, with bootstrapped intervals over whole reads.

n scores; a cluster is what is drawn together: a real read, or a stretch of the genome under simulated reads.
"""

from __future__ import annotations

import numpy as np

RATES = (0.003, 0.01)  # false positives
METRICS = ("auc", "recall_0.3", "recall_1")


class Clusters:
    """Which scores of a set are drawn together."""

    def __init__(self, names: np.ndarray):
        self.of = np.unique(names, return_inverse=True)[1]
        self.count = int(self.of.max()) + 1

    def weights(self, rng: np.random.Generator | None) -> np.ndarray:
        """How often each score occurs in a resample [n]; once each without a generator."""
        if rng is None:
            return np.ones(len(self.of))
        drawn = rng.integers(0, self.count, self.count)
        return np.bincount(drawn, minlength=self.count)[self.of].astype(float)


class Comparison:
    """Scores of positives against those of negatives, sorted once for all resamples."""

    def __init__(self, positive: np.ndarray, negative: np.ndarray):
        values, place = np.unique(np.concatenate([positive, negative]), return_inverse=True)
        self.values = len(values)
        self.positive, self.negative = place[: len(positive)], place[len(positive) :]

    def metrics(self, w: np.ndarray, v: np.ndarray) -> list[float]:
        """METRICS where positives weigh `w` and negatives `v`."""
        p = np.bincount(self.positive, w, self.values)
        n = np.bincount(self.negative, v, self.values)
        above, beside = np.cumsum(p[::-1])[::-1], np.cumsum(n[::-1])[::-1]
        area = (p * (np.cumsum(n) - n / 2)).sum() / (p.sum() * n.sum())
        return [float(area), *(self._recall(above, beside, rate) for rate in RATES)]

    def _recall(self, above: np.ndarray, beside: np.ndarray, rate: float) -> float:
        """Share of positives at the lowest threshold that lets at most `rate` of the negatives pass.

        A threshold is a score that passes, so ties, such as the zeros of an aligner, pass together.
        """
        passing = np.flatnonzero(beside <= rate * beside[0] * (1 + 1e-12))
        return float(above[passing[0]] / above[0]) if len(passing) else 0.0


def bounds(values: np.ndarray) -> list[float]:
    """The middle 95 % of the resamples [resamples]."""
    return [float(b) for b in np.quantile(values, [0.025, 0.975])]
