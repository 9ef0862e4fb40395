"""When the next item of an evenly paced source is due, by the moments that its items carry."""

from __future__ import annotations

# An item may come late by this part of itself without one being missing.
_LATE = 0.75
# So much of what an item is early or late moves the expectation: a clock that runs up to 7 % too slow leaves
# no gaps, and jitter hardly moves it.
_FOLLOW = 0.1


class Due:
    """Expects items at ``rate`` a second, from :meth:`restart` on."""

    def __init__(self, rate: float):
        self._rate = rate
        self._moment = 0.0

    def restart(self, moment: float, items: int) -> None:
        """``items`` came at ``moment``, whatever was expected."""
        self._moment = moment + items / self._rate

    def pass_over(self, items: int) -> None:
        """``items`` came that carry no moment."""
        self._moment += items / self._rate

    def arrive(self, moment: float, items: int) -> int:
        """``items`` came at ``moment``; how many are missing before them."""
        late = (moment - self._moment) * self._rate
        missing = round(late) if late >= _LATE else 0
        self._moment += (missing + _FOLLOW * (late - missing) + items) / self._rate
        return missing
