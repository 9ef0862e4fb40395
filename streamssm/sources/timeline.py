"""Times of rows against the model's rate: how many items are missing between two of them."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from fractions import Fraction

from streamssm.sources.due import Due

_JUDGED = 20  # intervals after which the rate is judged
_TOLERANCE = 0.25
_UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


class Timeline:
    """Watches the moments of rows that should come at ``rate`` a second."""

    def __init__(self, rate: Fraction, column: str):
        self._rate, self._column = float(rate), column
        self._due = Due(self._rate)
        self._latest: float | None = None
        self._intervals: list[float] = []

    def missing(self, moment: float) -> int:
        """Items missing before a row, by its moment in seconds.

        Raises:
            ValueError: time ran backwards, or the rows come at another rate; the message says so.
        """
        if self._latest is None:
            self._latest = moment
            self._due.restart(moment, 1)
            return 0
        if moment < self._latest:
            raise ValueError(
                f"{self._column} runs backwards, from {self._latest:.6f} to {moment:.6f}; sort the rows, or "
                "leave --time-column out"
            )
        self._judge(moment - self._latest)
        self._latest = moment
        return self._due.arrive(moment, 1)

    def _judge(self, interval: float) -> None:
        if len(self._intervals) >= _JUDGED:
            return
        self._intervals.append(interval)
        middle = statistics.median(self._intervals)
        if len(self._intervals) < _JUDGED or abs(middle * self._rate - 1) <= _TOLERANCE:
            return
        if middle == 0:
            raise ValueError(f"{self._column} is coarser than the rows; leave --time-column out")
        units = (unit for unit, scale in _UNITS.items() if abs(middle * self._rate / scale - 1) <= _TOLERANCE)
        if (unit := next(units, None)) is not None:
            raise ValueError(
                f"{self._column} seems to count {unit}; write it in seconds, or leave --time-column out"
            )
        raise ValueError(
            f"rows come {1 / middle:g} times a second by {self._column}, the model takes {self._rate:g}; "
            "resample them first, or leave --time-column out"
        )


def moment_of(text: str) -> float:
    """Seconds as a number, or a date and time of ISO 8601, in UTC where no zone is given.

    Raises:
        ValueError: it is neither, or not finite.
    """
    try:
        moment = float(text)
    except ValueError:
        date = datetime.fromisoformat(text)
        moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    if not abs(moment) < float("inf"):
        raise ValueError(f"{text} is not a moment")
    return moment
