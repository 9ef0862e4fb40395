"""The slots of a pool: what waits in each, column by column, so that many are handled at one stroke.

A row is a slot's place in every column. The rows of one call are all different; where they are neighbours,
columns are cut instead of picked from, which moves no memory.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.errors import QueueFullError, StreamEndedError, StreamTornError
from streamssm.frames import FrameRule

Array = npt.NDArray[Any]
_ENDLESS = sys.maxsize
#: rows as an index of columns
Index = slice | Array
#: first frame and the one after the last that a stream returns, of every output
Cut = tuple[tuple[int, int], ...]


def index_of(rows: Array) -> Index:
    """Rows as a slice, if each is the neighbour of the one before."""
    count = len(rows)
    if not count:
        return rows
    first = int(rows[0])
    if count > 1 and (int(rows[-1]) - first != count - 1 or not (rows[1:] > rows[:-1]).all()):
        return rows
    return slice(first, first + count)


class Table:
    """The columns. Items wait in ``stage``, which holds twice a block, and behind it in chunks of their own.

    In a pool that keeps up nearly all go through the stage: one copy in, one copy out. ``fill`` counts the
    items in the stage, ``items`` all that wait, padding included, ``position`` those that were accepted,
    ``done`` those that were run; ``since`` is when a block became whole. A ``suspect`` was in a call that
    failed; a ``torn`` one in a step that an interrupt cut short.
    """

    def __init__(self, slots: int, block: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.block = block
        self.stage: Array = np.zeros((slots, 2 * block, *shape), dtype)
        self.stages = list(self.stage)
        self.keys: Array = np.full(slots, None, object)
        counts: Array = np.zeros((4, slots), np.int64)
        flags: Array = np.zeros((6, slots), np.bool_)
        self.fill, self.items, self.position, self.done = counts
        self.taken, self.ready, self.paused, self.ending, self.suspect, self.torn = flags
        self.since = np.zeros(slots)
        self.more: dict[int, deque[Array]] = {}
        self.taken_count = self.ready_count = self.paused_count = self.ending_count = 0
        self.trouble = False  # whether a row may be suspect or torn
        # one number at a time costs a third of what it does through the arrays
        self._fill, self._items = memoryview(self.fill), memoryview(self.items)
        self._position = memoryview(self.position)
        self._ready, self._paused, self._ending = (
            memoryview(f) for f in (self.ready, self.paused, self.ending)
        )

    def __len__(self) -> int:
        return len(self.stages)

    def take(self, row: int, key: Hashable) -> None:
        """A stream has come."""
        self.keys[row], self.taken[row] = key, True
        self.taken_count += 1

    def leave(self, row: int) -> None:
        """It has gone."""
        self.clear(row)
        self.set_paused(row, False)
        self.keys[row], self.taken[row] = None, False
        self.taken_count -= 1

    def tear(self, rows: Array) -> None:
        """An interrupt has cut a step of these short, or lost what it gave; those that have gone do not
        mind."""
        self.torn[rows] = self.taken[rows]
        self.trouble = True

    def clear(self, row: int) -> None:
        """As new, at item 0, and not ready."""
        for column in (self.fill, self.items, self.position, self.done):
            column[row] = 0
        self.suspect[row] = self.torn[row] = False
        self.ending_count -= self._ending[row]
        self._ending[row] = False
        self.more.pop(row, None)
        self.set_ready(row, False)

    def end(self, row: int) -> None:
        """It is being flushed: what it has accepted is all there is."""
        self.ending_count += not self._ending[row]
        self._ending[row] = True

    def set_ready(self, row: int, ready: bool) -> None:
        """Say whether a step would run it."""
        self.ready_count += ready - self._ready[row]
        self._ready[row] = ready

    def set_paused(self, row: int, paused: bool) -> None:
        """Say whether it is left out of steps."""
        self.paused_count += paused - self._paused[row]
        self._paused[row] = paused

    def becomes_ready(self, row: int) -> bool:
        """Note whether a step would run it now; true if none would before."""
        if self._ready[row] or self._paused[row]:
            return False
        if not self._ending[row] and self._items[row] < self.block:
            return False
        self.since[row] = time.monotonic()
        self._ready[row] = True
        self.ready_count += 1
        return True

    def become_ready(self, rows: Array) -> bool:
        """:meth:`becomes_ready` for each of these rows, which are not being flushed; true for any."""
        fresh = rows[(self.items[rows] >= self.block) & ~self.ready[rows] & ~self.paused[rows]]
        if not len(fresh):
            return False
        self.since[fresh] = time.monotonic()
        self.ready[fresh] = True
        self.ready_count += len(fresh)
        return True

    # Items in.

    def put(self, row: int, items: Array, limit: int = _ENDLESS) -> int:
        """Copy items ``[T, *item_shape]`` behind those that wait; how many wait now. If these would be more
        than ``limit``, or the stream is being flushed, nothing is taken and -1 returned:
        :meth:`Slot.require_room` says why."""
        count, fill, stage = len(items), self._fill[row], self.stages[row]
        waiting: int = self._items[row] + count
        if waiting > limit or self._ending[row]:
            return -1
        end = fill + count
        if end <= len(stage) and not (self.more and row in self.more):
            stage[fill:end] = items
            self._fill[row] = end
        elif count:
            self._put_behind(row, items)
        self._items[row] = waiting
        self._position[row] += count
        return waiting

    def _put_behind(self, row: int, items: Array) -> None:
        """Copy items behind the stage; small chunks become one, so that their number stays small too."""
        more = self.more.setdefault(row, deque())
        if more and len(more[-1]) + len(items) <= self.block:
            more[-1] = np.concatenate((more[-1], items))
        else:
            more.append(items.copy())
        self._refill(row)

    def put_rows(self, rows: Array, items: Array) -> None:
        """:meth:`put` for each row and its part of ``items [n, T, *item_shape]``; streams with as many items
        waiting are filled at one stroke."""
        fills, count = self.fill[rows], items.shape[1]
        if self.more and not self.more.keys().isdisjoint(rows.tolist()):
            self._put_each(rows, items)
            return
        for fill in [int(fills[0])] if (fills == fills[0]).all() else np.unique(fills).tolist():
            same = fills == fill
            whole = bool(same.all())
            some, part = (rows, items) if whole else (rows[same], items[same])
            if fill + count > self.stage.shape[1]:
                self._put_each(some, part)
                continue
            self.stage[index_of(some), fill : fill + count] = part
            self.fill[some] += count
            self.items[some] += count
            self.position[some] += count

    def _put_each(self, rows: Array, items: Array) -> None:
        for row, part in zip(rows.tolist(), items, strict=True):
            self.put(row, part)

    def _refill(self, row: int) -> None:
        """Bring what waits behind the stage into it, as far as there is room."""
        more, stage = self.more[row], self.stages[row]
        while more and (room := len(stage) - self._fill[row]):
            chunk = more.popleft()
            if len(chunk) > room:
                more.appendleft(chunk[room:])
                chunk = chunk[:room]
            fill = self._fill[row]
            stage[fill : fill + len(chunk)] = chunk
            self._fill[row] = fill + len(chunk)
        if not more:
            del self.more[row]

    def waiting(self, row: int) -> Array:
        """A copy of all that wait."""
        return np.concatenate([self.stage[row, : self.fill[row]], *self.more.get(row, ())])

    # Items run.

    def drop(self, rows: Array, at: Index, count: int) -> bool:
        """Take the first ``count`` items off these rows, ``at`` as an index, which have been run; the stages
        hold as many. Whether one is ready again, behind those that have waited longer."""
        fill, items = self.fill[at] - count, self.items[at] - count
        rest = int(fill.max())
        if rest:
            self.stage[at, :rest] = self.stage[at, count : count + rest]
        self.fill[at], self.items[at] = fill, items
        self.done[at] += count
        for row in self.more.keys() & rows.tolist() if self.more else ():
            self._refill(row)
        before = int(np.count_nonzero(self.ready[at]))
        again = items >= self.block
        if self.ending_count:
            again |= self.ending[at]
        if self.paused_count:
            again &= ~self.paused[at]
        after = int(np.count_nonzero(again))
        self.ready[at] = again
        self.ready_count += after - before
        if after:
            self.since[at] = time.monotonic()
        return bool(after)

    def cuts(
        self, rows: Array, at: Index, rules: Sequence[FrameRule], frames: Sequence[int]
    ) -> Iterator[tuple[Array | None, Cut]]:
        """Groups of rows, as places in ``rows`` or None for all, and which of the frames just computed they
        return: no warm-up, and none that stem from padding alone."""
        ahead = any(rule.warmup and rule.cursor(int(self.done[at].min())) for rule in rules)
        if not ahead and not (self.ending_count and self.ending[at].any()):
            yield None, tuple((0, count) for count in frames)
            return
        groups: dict[Cut, list[int]] = {}
        for place, row in enumerate(rows.tolist()):
            cut = tuple(self._cut(row, rule, count) for rule, count in zip(rules, frames, strict=True))
            groups.setdefault(cut, []).append(place)
        for cut, places in groups.items():
            yield np.asarray(places), cut

    def _cut(self, row: int, rule: FrameRule, frames: int) -> tuple[int, int]:
        done = int(self.done[row])
        start = min(frames, -rule.cursor(done)) if rule.warmup else 0
        if not self.ending[row]:
            return start, frames
        wanted = rule.total(int(self.position[row])) - rule.returned(done)
        return start, min(frames, start + max(0, wanted))


class Slot:
    """One stream of a pool, by its row."""

    __slots__ = ("key", "row", "table")

    def __init__(self, table: Table, key: Hashable, row: int) -> None:
        self.table, self.key, self.row = table, key, row

    @property
    def ending(self) -> bool:
        """Whether the stream is being flushed."""
        return bool(self.table.ending[self.row])

    @property
    def torn(self) -> bool:
        """Whether an interrupt cut its step short."""
        return bool(self.table.torn[self.row])

    @torn.setter
    def torn(self, value: bool) -> None:
        self.table.torn[self.row] = value
        self.table.trouble |= value

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
        waiting = int(self.table.items[self.row])
        if waiting + count > limit:
            raise QueueFullError(
                f"stream {self.key!r} has {waiting} items waiting and was given {count}, its limit is "
                f"{limit}; step the pool, drop items, or raise limit"
            )
