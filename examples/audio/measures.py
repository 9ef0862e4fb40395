"""How good scores of frames are, with intervals: ROC-AUC, misses at a rate of false alarms, onset latency.

Intervals are bootstrapped over scenes (frames of one scene are far from independent): 95 % of the
values that scenes drawn anew, with replacement, would give. Two detectors are compared on the same
draws, so that what is hard for both counts for neither.

Letters: C scenes, T frames in a scene, K bins, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS, DRAWS, SEED = 4096, 1000, 11
FALSE_ALARMS = 0.05  # the share of other frames at which misses and latency are measured
WIDENED = 5  # frames by which the labels begin before the sound does
LONGEST = 100  # frames after an onset; what is found later is not found


@dataclass(frozen=True)
class Counts:
    """How many frames of each scene have a score in each bin of equally many frames."""

    speech: np.ndarray  # float64 [C, K]
    other: np.ndarray  # float64 [C, K]

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray, scenes: int) -> Counts:
        """Scores and labels [C * T]; ties stay together."""
        edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1], method="nearest"))
        place = np.searchsorted(edges, scores, side="right") + (len(edges) + 1) * (
            np.arange(len(scores)) // (len(scores) // scenes)
        )
        size = (scenes, len(edges) + 1)
        speech, other = (
            np.bincount(place[labels == kind], minlength=size[0] * size[1]).reshape(size).astype(np.float64)
            for kind in (1, 0)
        )
        return cls(speech, other)

    def rows(self, chosen: np.ndarray) -> Counts:
        """Some of the scenes."""
        return Counts(self.speech[chosen], self.other[chosen])

    def auc(self, weights: np.ndarray | None = None) -> np.ndarray:
        """ROC-AUC of all scenes, or of each draw of them by weights [R, C]; ties count half."""
        speech, other = self._drawn(weights)
        below = np.cumsum(other, 1) - other / 2
        return (speech * below).sum(1) / (speech.sum(1) * other.sum(1))

    def misses(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The share of speech frames missed where FALSE_ALARMS of the others are taken for speech."""
        speech, other = self._drawn(weights)
        found, false = (np.cumsum(x[:, ::-1], 1) / x.sum(1, keepdims=True) for x in (speech, other))
        # the curve begins at (0, 0): a detector whose highest score is a false alarm more often than
        # that is on the straight line to its first point, as if it tossed a coin
        curves = zip(np.pad(false, ((0, 0), (1, 0))), np.pad(found, ((0, 0), (1, 0))), strict=True)
        return 1 - np.array([np.interp(FALSE_ALARMS, f, s) for f, s in curves])

    def _drawn(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        weights = np.ones((1, len(self.speech))) if weights is None else weights
        return weights @ self.speech, weights @ self.other


def draws(scenes: int) -> np.ndarray:
    """How often each draw holds each scene [R, C]; the same for every detector."""
    return np.random.default_rng(SEED).multinomial(scenes, np.full(scenes, 1 / scenes), DRAWS).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The lowest score at which at most FALSE_ALARMS of the frames without speech are above it."""
    return float(np.quantile(scores[labels == 0], 1 - FALSE_ALARMS, method="higher"))


def onset_latency(scores: np.ndarray, labels: np.ndarray, limit: float) -> dict[str, float | None]:
    """From the first sound of an utterance to the first frame above `limit`, in milliseconds.

    An utterance counts where at least 300 ms without speech lie before it. One found already when
    it begins has latency 0; `lost` is the share not found within a second, which counts as one.
    All are None where no score is above `limit`: the detector has no such threshold.
    """
    rises = np.flatnonzero(np.diff(labels.astype(int)) == 1) + 1
    quiet = [r for r in rises if r >= 30 and not labels[r - 30 : r].any() and r + LONGEST + 5 < len(labels)]
    active = scores > limit
    if not active.any():
        return {"onsets": len(quiet), "median_ms": None, "p90_ms": None, "lost": None}
    waits = []
    for onset in (r + WIDENED for r in quiet):
        hits = np.flatnonzero(active[onset : onset + LONGEST])
        waits.append(hits[0] * 10.0 if len(hits) else np.inf)
    waits = np.array(waits)
    return {
        "onsets": len(waits),
        "median_ms": _at_most(np.quantile(waits, 0.5, method="lower")),
        "p90_ms": _at_most(np.quantile(waits, 0.9, method="lower")),
        "lost": float(np.isinf(waits).mean()),
    }


def _at_most(wait: float) -> float:
    return float(min(wait, LONGEST * 10.0))
