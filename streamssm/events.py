"""Probabilities to start and end events, with hysteresis.

The rule is :class:`streamssm.manifest.EventRule`. The detector counts items, so its events do not
depend on how the probabilities were split among pushes, and its state is a handful of integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm import clock
from streamssm.errors import InputError, SnapshotError
from streamssm.manifest import EventRule

Event = dict[str, Any]

_STATE = ("index", "active", "run")
_COUNTS = ("index", "ending", "free")  # of a detector of classes
_NONE = -1  # no event is open


class EventDetector:
    """Turns one stream's probabilities into events.

    An event is ``{"event": "start" | "end", "label", "time", "index"}``. It starts at the first of
    the items that stayed at or above ``onset`` for ``min_on`` seconds, and ends at the first of
    the items that stayed below ``offset`` for ``min_off`` seconds. ``index`` is the number of that
    item and ``time`` the moment at which it starts. Without a clock (``rate`` None) ``min_on`` and
    ``min_off`` count items and events carry no time. NaN is neither above nor below.

    Args:
        rule: the thresholds, and the column to read from probabilities ``[F, C]``.
        rate: output items per second, or None.
    """

    def __init__(self, rule: EventRule, rate: float | Fraction | None):
        self.rule = rule
        self._rate = None if rate is None else clock.exact(rate)
        unit = self._rate if self._rate is not None else Fraction(1)
        self._min_on = clock.items_at_least(rule.min_on, unit)
        self._min_off = clock.items_at_least(rule.min_off, unit)
        # compared as float32, so that a probability that prints as the threshold equals it
        self._onset, self._offset = float(np.float32(rule.onset)), float(np.float32(rule.offset))
        self._index = 0  # items seen
        self._active = False
        self._run = 0  # latest items in a row that speak for a change

    @property
    def active(self) -> bool:
        """Whether an event is open."""
        return self._active

    def push(self, probabilities: npt.ArrayLike) -> list[Event]:
        """Take ``[F]`` or ``[F, C]`` probabilities; return the events they completed, in order.

        Raises:
            InputError: another rank, or no such column; the detector is as it was.
        """
        events: list[Event] = []
        for probability in self._column(probabilities):
            changing = probability < self._offset if self._active else probability >= self._onset
            self._run = self._run + 1 if changing else 0
            self._index += 1
            if changing and self._run >= (self._min_off if self._active else self._min_on):
                events.append(self._event("end" if self._active else "start", self._index - self._run))
                self._active, self._run = not self._active, 0
        return events

    def flush(self) -> list[Event]:
        """End the stream: an open event ends at the last item, marked ``"cut": true``."""
        if not self._active:
            return []
        event = self._event("end", self._index - 1) | {"cut": True}
        self._active, self._run = False, 0
        return [event]

    def pass_over(self, items: int) -> None:
        """Count items that are missing: an open event goes on, a change that was not sure yet begins anew."""
        self._index, self._run = self._index + items, 0

    def reset(self) -> None:
        """Forget everything; the next item is number 0."""
        self._index, self._active, self._run = 0, False, 0

    def state(self) -> dict[str, int]:
        """What the detector remembers, as integers for :meth:`restore`."""
        return {"index": self._index, "active": int(self._active), "run": self._run}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue where :meth:`state` was taken.

        Raises:
            SnapshotError: not such a state; the detector is as it was.
        """
        values = [state.get(key) for key in _STATE]
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise SnapshotError(f"the event state {dict(state)!r} is not one that a detector saved")
        index, active, run = (int(value) for value in values if isinstance(value, int))
        self._index, self._active, self._run = index, bool(active), run

    def _column(self, probabilities: npt.ArrayLike) -> list[float]:
        array = np.asarray(probabilities, np.float32)
        if array.ndim == 2 and self.rule.column < array.shape[1]:
            array = array[:, self.rule.column]
        if array.ndim != 1:
            raise InputError(
                f"probabilities of shape {array.shape} have no column {self.rule.column}; pass [F] or [F, C]"
            )
        values: list[float] = array.tolist()
        return values

    def _event(self, kind: str, index: int) -> Event:
        event: Event = {"event": kind, "label": self.rule.label}
        if self._rate is not None:
            event["time"] = clock.seconds(index, self._rate)
        return event | {"index": index}


class ClassDetector:
    """Turns one stream's probabilities of several classes into events of which one is open at a time.

    An event of a class starts and ends as in :class:`EventDetector`. While it is open no other starts; a
    class that was sure enough before the end starts at the end. Of several that are sure at once the
    likeliest starts.

    Args:
        rule: the thresholds; its column is not read.
        labels: one for each column of probabilities ``[F, C]``.
        rate: output items per second, or None.
    """

    def __init__(self, rule: EventRule, labels: Sequence[str], rate: float | Fraction | None):
        self.rule, self._labels = rule, tuple(labels)
        self._rate = None if rate is None else clock.exact(rate)
        unit = self._rate if self._rate is not None else Fraction(1)
        self._min_on = clock.items_at_least(rule.min_on, unit)
        self._min_off = clock.items_at_least(rule.min_off, unit)
        self._onset, self._offset = np.float32(rule.onset), np.float32(rule.offset)
        self._index = 0  # items seen
        self._open = _NONE  # the column of the open event
        self._ending = 0  # latest items in a row that speak for its end
        self._free = 0  # the item from which on another may start
        self._runs = [0] * len(self._labels)  # latest items in a row that are sure of each class

    @property
    def active(self) -> bool:
        """Whether an event is open."""
        return self._open != _NONE

    def push(self, probabilities: npt.ArrayLike) -> list[Event]:
        """Take ``[F, C]`` probabilities; return the events they completed, in order.

        Raises:
            InputError: another shape; the detector is as it was.
        """
        array = np.asarray(probabilities, np.float32)
        if array.ndim != 2 or array.shape[1] != len(self._labels):
            raise InputError(f"probabilities of shape {array.shape}; pass [F, {len(self._labels)}]")
        above, below = array >= self._onset, array < self._offset
        events: list[Event] = []
        for item in range(len(array)):
            events += self._item(array[item], above[item].tolist(), below[item].tolist())
        return events

    def flush(self) -> list[Event]:
        """End the stream: an open event ends at the last item, marked ``"cut": true``."""
        if not self.active:
            return []
        event = self._event("end", self._open, self._index - 1) | {"cut": True}
        self._open, self._ending, self._runs = _NONE, 0, [0] * len(self._labels)
        return [event]

    def pass_over(self, items: int) -> None:
        """Count items that are missing: an open event goes on, a change that was not sure yet begins anew."""
        self._index += items
        self._ending, self._runs = 0, [0] * len(self._labels)

    def reset(self) -> None:
        """Forget everything; the next item is number 0."""
        self._index, self._ending, self._free = 0, 0, 0
        self._open, self._runs = _NONE, [0] * len(self._labels)

    def state(self) -> dict[str, Any]:
        """What the detector remembers, as integers for :meth:`restore`."""
        state = {"index": self._index, "open": self._open, "ending": self._ending, "free": self._free}
        return state | {"runs": list(self._runs)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue where :meth:`state` was taken.

        Raises:
            SnapshotError: not such a state; the detector is as it was.
        """
        opened, runs = state.get("open"), state.get("runs")
        listed = runs if isinstance(runs, list | tuple) else ()
        counts = [state.get(key) for key in _COUNTS] + list(listed)  # none is above the first
        values = [value for value in (opened, *counts) if type(value) is int]
        whole = len(values) == len(_COUNTS) + len(self._labels) + 1 == len(counts) + 1
        if (
            not whole
            or not 0 <= min(values[1:]) <= max(values[1:]) == values[1]
            or not _NONE <= values[0] < len(self._labels)
        ):
            raise SnapshotError(
                f"the event state {dict(state)!r} is not one that a detector of classes saved"
            )
        self._open, self._index, self._ending, self._free, *self._runs = values

    def _item(self, values: npt.NDArray[np.float32], above: list[bool], below: list[bool]) -> list[Event]:
        """The events that one item completes: an end, a start, or both."""
        self._index += 1
        self._runs = [run + 1 if sure else 0 for run, sure in zip(self._runs, above, strict=True)]
        events = []
        if self.active:
            self._ending = self._ending + 1 if below[self._open] else 0
            if self._ending < self._min_off:
                return []
            self._free = self._index - self._ending
            events.append(self._event("end", self._open, self._free))
            self._open, self._ending = _NONE, 0
        sure = [place for place, run in enumerate(self._runs) if run >= self._min_on]
        if sure:
            self._open = max(sure, key=lambda place: float(values[place]))
            first = max(self._index - self._runs[self._open], self._free)
            events.append(self._event("start", self._open, first))
        return events

    def _event(self, kind: str, column: int, index: int) -> Event:
        event: Event = {"event": kind, "label": self._labels[column]}
        if self._rate is not None:
            event["time"] = clock.seconds(index, self._rate)
        return event | {"index": index}
