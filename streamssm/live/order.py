"""What is missing between messages, by the numbers or the moments that they carry."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from streamssm.live.messages import Place
from streamssm.sources.base import MISSING, Gap
from streamssm.sources.due import Due

# What jumps further is a sender whose clock was set, or that counts from somewhere else now.
_DAY = 86400.0  # seconds
_FURTHEST = 10_000_000  # frames, without a rate


class Order:
    """Watches ``seq`` and ``time`` of one source at ``rate`` frames a second (None: no clock).

    A number counts messages. If both are there the number is believed: it cannot be late.
    """

    def __init__(self, rate: Fraction | None):
        self._rate = None if rate is None else float(rate)
        self._number: int | None = None
        self._frames: int | None = None  # in the latest message
        self._moment: float | None = None  # of the latest message that carried one
        self._due = None if self._rate is None else Due(self._rate)

    def accept(self, place: Place, again: bool = False) -> Sequence[Gap] | None:
        """What is missing before a message; None if it is one that was there before.

        ``again`` says that the message may be a second delivery. A number or moment that runs backwards,
        or ahead by more than a day, is a sender that started over: a gap of unknown length.
        """
        before, number = self._number, place.number
        if number is None or before is None:
            gap = self._by_moment(self._follow(place))
        elif number == before or (again and number < before):
            return None
        else:
            gap = self._by_number(number - before - 1, place.frames)
            self._follow(place)
        self._count(place)
        return () if gap is None else (gap,)

    def _count(self, place: Place) -> None:
        """A message without a number follows on the one before, unless it cannot be said what it was: then
        the next number tells what is missing."""
        if place.number is not None:
            self._number = place.number
        elif self._number is not None and place.frames is not None:
            self._number += 1
        if place.frames is not None:
            self._frames = place.frames

    def _by_number(self, skipped: int, frames: int | None) -> Gap | None:
        if skipped < 0:
            return Gap(MISSING)
        if not skipped:
            return None
        # what the messages held that never came is known only if all hold alike
        alike = frames is not None and frames == self._frames
        return self._gap(skipped * frames if alike and frames else None)

    def _by_moment(self, late: int | None) -> Gap | None:
        if not late or self._rate is None:
            return None
        return Gap(MISSING) if late < 0 else self._gap(late, round(late / self._rate, 6))

    def _gap(self, frames: int | None, seconds: float | None = None) -> Gap:
        most = _FURTHEST if self._rate is None else _DAY * self._rate
        return Gap(MISSING) if frames is None or frames > most else Gap(MISSING, frames, seconds)

    def _follow(self, place: Place) -> int | None:
        """How many frames are missing; negative for a clock that ran backwards, None without one."""
        if place.frames is None or self._due is None:
            return None
        before, moment = self._moment, place.moment
        if moment is None:
            self._due.pass_over(place.frames)
            return None
        self._moment = moment
        if before is None or moment < before:
            self._due.restart(moment, place.frames)
            return None if before is None else -1
        return self._due.arrive(moment, place.frames)
