"""The states of many streams, on lanes of a few rows each.

A slot has a row of a lane, not always the same one. Where no slot of a lane has to wait, the lane runs
as it is, its states in place: those of many streams do not stay in the cache, and should pass through it
once. The others are copied together to a lane that is kept for this, and their states back when the run
has succeeded. So no stream is run that has nothing to say, and all lanes being of one size, a stream
gets the same bytes in either way.

Streams that are fed in real time become ready with the same others again and again. So rows are exchanged
until those that were ready together fill lanes of their own, which costs as much as copying them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from streamssm.backends import Array, Call, Lane

#: Rows of a lane: enough that a call costs little beside its rows, few enough that its buffers stay
#: in the second level of cache.
ROWS = 32

_WORTH = 4  # a lane is filled up if every fourth of its rows is ready


class LaneSlots:
    """Slots on lanes of the same number of rows; see :class:`streamssm.backends.Slots`."""

    def __init__(self, lanes: Sequence[Lane], common: Lane) -> None:
        """``common`` is the lane for copies; the lanes may share their buffers ``x`` and ``y``."""
        self._lanes, self._common, self._size = lanes, common, len(common.x)
        self._row = np.arange(len(lanes) * self._size)  # of each slot
        self._slot = self._row.copy()  # of each row

    def read(self, slot: int) -> tuple[Array, ...]:
        """A copy of a state, ``[1, *shape]`` each."""
        lane, row = self._place(slot)
        return tuple(state[row : row + 1].copy() for state in lane.state)

    def write(self, slot: int, states: Sequence[Array] | None = None) -> None:
        """Set a state, to zeros by default."""
        lane, row = self._place(slot)
        for index, state in enumerate(lane.state):
            state[row] = 0 if states is None else states[index][0]

    def calls(self, ready: Array, others: Array) -> Iterator[Call]:
        """Calls for a block of every slot that is ready; the ``others`` are not touched."""
        wanted, kept = self._marked(ready), self._marked(others)
        self._draw_together(wanted, kept)
        table = self._table()
        wants: Array = wanted[table]
        keeps: Array = np.any(kept[table], axis=1)
        scattered = [np.zeros(0, np.intp)]
        for index in np.flatnonzero(wants.any(axis=1)).tolist():
            rows, lane = np.flatnonzero(wants[index]), self._lanes[index]
            if keeps[index]:
                scattered.append(table[index, rows])
                continue
            if len(rows) < self._size:
                lane.x[...] = 0  # rows that nobody has run on zeros
            yield Call(table[index, rows], rows, lane.x, partial(_run, lane, lane.step))
        yield from self._common_calls(np.concatenate(scattered), self._run_copies)

    def last_calls(self, ready: Array, items: int) -> Iterator[Call]:
        """Calls for the first ``items`` of a block, less than all of it; the states stay as they are."""
        return self._common_calls(ready, partial(self._run_last, items))

    # Who lies where.

    def _place(self, slot: int) -> tuple[Lane, int]:
        index, row = divmod(int(self._row[slot]), self._size)
        return self._lanes[index], row

    def _marked(self, slots: Array) -> Array:
        """Slots as one truth value each."""
        marks = np.zeros(len(self._row), np.bool_)
        marks[slots] = True
        return marks

    def _table(self) -> Array:
        """The slots, lane by lane, as they lie now."""
        return self._slot.reshape(len(self._lanes), self._size).copy()

    def _draw_together(self, wanted: Array, kept: Array) -> None:
        """Fill lanes that many slots are ready on with ready ones from lanes with few, in exchange for those
        that have to wait."""
        table = self._table()
        counts = wanted[table].sum(axis=1)
        mixed = np.flatnonzero((counts > 0) & kept[table].any(axis=1))
        order = mixed[np.lexsort((mixed, counts[mixed]))[::-1]].tolist()
        left = int(counts[mixed].sum())
        for place, index in enumerate(order):
            slots = self._table()[index]
            out = slots[kept[slots]]
            count = int(wanted[slots].sum())  # fewer, if it has given some
            left -= count
            if left < len(out) or count * _WORTH < self._size:
                return
            left -= self._fill_up(out, reversed(order[place + 1 :]), wanted)

    def _fill_up(self, out: Array, givers: Iterator[int], wanted: Array) -> int:
        """Exchange the slots ``out`` of a lane for ready ones of the givers; how many were given."""
        total = len(out)
        for giver in givers:
            slots = self._table()[giver]
            given = slots[wanted[slots]][: len(out)]
            self._exchange(out[: len(given)], given)
            out = out[len(given) :]
            if not len(out):
                break
        return total

    def _exchange(self, some: Array, others: Array) -> None:
        """Exchange the rows of slots on one lane with those of as many on another one."""
        if not len(some):
            return
        (one, _), (two, _) = self._place(some[0]), self._place(others[0])
        here, there = self._row[some] % self._size, self._row[others] % self._size
        first, second = ([state[rows] for state in lane.state] for lane, rows in ((one, here), (two, there)))
        slots = np.concatenate([some, others])
        rows = self._row[np.concatenate([others, some])]

        def move() -> None:
            for lane, places, states in ((one, here, second), (two, there, first)):
                for state, values in zip(lane.state, states, strict=True):
                    state[places] = values
            self._row[slots] = rows
            self._slot[rows] = slots

        try:
            move()
        except BaseException:  # an interrupt; half of an exchange must not stay
            move()
            raise

    # Running copies.

    def _common_calls(self, slots: Array, run: Callable[[Array], tuple[Array, ...]]) -> Iterator[Call]:
        for start in range(0, len(slots), self._size):
            some = slots[start : start + self._size]
            yield Call(some, range(len(some)), self._common.x, partial(run, some))

    def _run_copies(self, slots: Array) -> tuple[Array, ...]:
        self._bring(slots)
        y = _run(self._common, self._common.step)
        for lane, here, rows in self._parts(slots):
            for left, kept in zip(self._common.state, lane.state, strict=True):
                kept[rows] = left[here]
        return y

    def _run_last(self, items: int, slots: Array) -> tuple[Array, ...]:
        if not items:
            return tuple(y[:, :0] for y in self._common.y)
        self._bring(slots)
        return _run(self._common, partial(self._common.step_short, items))

    def _bring(self, slots: Array) -> None:
        """Copy states to the common lane; rows left over run on zeros."""
        for lane, here, rows in self._parts(slots):
            for given, kept in zip(self._common.state, lane.state, strict=True):
                given[here] = kept[rows]
        self._common.x[len(slots) :] = 0
        for given in self._common.state:
            given[len(slots) :] = 0

    def _parts(self, slots: Array) -> Iterator[tuple[Lane, Array, Array]]:
        """The slots lane by lane: the lane, their rows in the common lane, and those in it."""
        lanes, rows = np.divmod(self._row[slots], self._size)
        for index in np.unique(lanes).tolist():
            here = np.flatnonzero(lanes == index)
            yield self._lanes[index], here, rows[here]


def _run(lane: Lane, step: Callable[[], tuple[Array, ...] | None]) -> tuple[Array, ...]:
    try:
        return step() or lane.y
    except BaseException:
        lane.x[...] = 0  # or what the graph cannot run would be in the way of others
        raise
