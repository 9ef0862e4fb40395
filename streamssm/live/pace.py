"""Whether a sender brings as many frames a second as its rate says."""

from __future__ import annotations

_WATCHED = 10.0  # seconds
_TOLERANCE = 0.1


class Pace:
    """Counts frames against the clock for ten seconds, once.

    A sender that pauses is not judged, nor one that is held up because nobody reads.
    """

    def __init__(self, rate: float | None):
        self._rate = rate
        self._began: float | None = None
        self._latest = 0.0
        self._frames = 0

    def judge(self, frames: int, at: float, held_up: bool) -> str | None:
        """Count ``frames`` that came at ``at``; what to tell the user, if anything."""
        if self._rate is None or not frames:
            return None
        if self._began is None:  # the first message stands for the time before it
            self._began = self._latest = at
            return None
        paused, self._latest = at - self._latest, at
        self._frames += frames
        if held_up or paused > _WATCHED / 5:
            self._rate = None
            return None
        seconds = at - self._began
        return None if seconds < _WATCHED else self._verdict(self._frames / seconds)

    def _verdict(self, seen: float) -> str | None:
        rate, self._rate = self._rate or seen, None
        if abs(seen / rate - 1) <= _TOLERANCE:
            return None
        return (
            f"{seen:.4g} items come in a second, not {rate:g}: --rate or the model is wrong for this sender, "
            "and so are all times"
        )
