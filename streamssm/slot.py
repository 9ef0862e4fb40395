"""One stream of a pool: its slot, and the items it has been given but not yet run."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.errors import QueueFullError, StreamEndedError, StreamTornError
from streamssm.frames import FrameRule

Array = npt.NDArray[Any]


class Slot:
    """Items wait in ``stage``, which holds at least a block, and behind it in chunks of their own.

    In a pool that keeps up nearly all go through the stage: one copy in, one copy out.
    """

    __slots__ = (
        "_more",
        "done",
        "ending",
        "fill",
        "items",
        "key",
        "position",
        "row",
        "since",
        "stage",
        "suspect",
        "torn",
    )

    def __init__(self, key: Hashable, row: int, stage: Array) -> None:
        self.key, self.row, self.stage = key, row, stage
        self.since = 0.0  # when its block became whole
        self.clear()

    def clear(self) -> None:
        """As new, at item 0."""
        self._more: deque[Array] = deque()
        self.fill = 0  # items in the stage
        self.items = 0  # items that wait, padding included
        self.position = 0  # items accepted
        self.done = 0  # items run, padding included
        self.ending = False
        self.suspect = False  # it was in a call that failed
        self.torn = False  # an interrupt cut its step short

    def put(self, items: Array) -> None:
        """Copy items ``[T, *item_shape]`` behind those that wait."""
        count = len(items)
        end = self.fill + count
        if end <= len(self.stage) and not self._more:
            self.stage[self.fill : end] = items
            self.fill = end
        else:
            self._more.append(items.copy())
            self._refill()
        self.items += count
        self.position += count

    def drop(self, count: int) -> None:
        """Take the first ``count`` items off, which have been run; the stage holds as many."""
        rest = self.fill - count
        if rest:
            self.stage[:rest] = self.stage[count : self.fill]
        self.fill = rest
        self.items -= count
        self.done += count
        if self._more:
            self._refill()

    def new_frames(self, rule: FrameRule, y: Array) -> Array:
        """Of the frames ``y`` that were just computed those that the stream returns: no warm-up, and
        none that stem from padding alone."""
        if rule.warmup:
            y = y[-rule.cursor(self.done) :]
        return y[: rule.total(self.position) - rule.returned(self.done)] if self.ending else y

    def require_open(self) -> None:
        """Raises StreamEndedError where the stream is being flushed."""
        if self.ending:
            raise StreamEndedError(f"stream {self.key!r} is being flushed; step the pool, then open it anew")

    def require_whole(self) -> None:
        """Raises StreamTornError where an interrupt has cut a step short."""
        if self.torn:
            raise StreamTornError(
                f"an interrupt cut a step of stream {self.key!r} short; reset, reopen or close it"
            )

    def require_room(self, count: int, limit: int) -> None:
        """Raises QueueFullError or StreamEndedError where ``count`` items are too many."""
        self.require_open()
        if self.items + count > limit:
            raise QueueFullError(
                f"stream {self.key!r} has {self.items} items waiting and was given {count}, its limit is "
                f"{limit}; step the pool, drop items, or raise limit"
            )

    def waiting(self) -> Array:
        """A copy of all that wait."""
        return np.concatenate([self.stage[: self.fill], *self._more])

    def _refill(self) -> None:
        while self._more and (room := len(self.stage) - self.fill):
            chunk = self._more.popleft()
            if len(chunk) > room:
                self._more.appendleft(chunk[room:])
                chunk = chunk[:room]
            self.stage[self.fill : self.fill + len(chunk)] = chunk
            self.fill += len(chunk)


def put_rows(slots: list[Slot], stage: Array, rows: Array) -> None:
    """:meth:`Slot.put` for each slot and its row of ``rows [n, T, *item_shape]``; the slots' stages are
    rows of ``stage``. Streams that are fed in step are filled at one stroke."""
    fill, count = slots[0].fill if slots else 0, rows.shape[1]
    end = fill + count
    if end > stage.shape[1] or any(slot.fill != fill or slot._more for slot in slots):
        for slot, items in zip(slots, rows, strict=True):
            slot.put(items)
        return
    stage[[slot.row for slot in slots], fill:end] = rows
    for slot in slots:
        slot.fill = end
        slot.items += count
        slot.position += count
