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

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

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
        self._row = list(range(len(lanes) * self._size))  # of each slot
        self._slot = list(self._row)  # of each row

    def read(self, slot: int) -> tuple[Array, ...]:
        """A copy of a state, ``[1, *shape]`` each."""
        lane, row = self._place(slot)
        return tuple(state[row : row + 1].copy() for state in lane.state)

    def write(self, slot: int, states: Sequence[Array] | None = None) -> None:
        """Set a state, to zeros by default."""
        lane, row = self._place(slot)
        for index, state in enumerate(lane.state):
            state[row] = 0 if states is None else states[index][0]

    def calls(self, ready: Sequence[int], others: Collection[int]) -> Iterator[Call]:
        """Calls for a block of every slot that is ready; the ``others`` are not touched."""
        wanted, kept = set(ready), set(others)
        self._draw_together(wanted, kept)
        scattered: list[int] = []
        for index, lane in enumerate(self._lanes):
            slots = self._slots_of(index)
            rows = [row for row, slot in enumerate(slots) if slot in wanted]
            if not rows:
                continue
            if kept.isdisjoint(slots):
                if len(rows) < self._size:
                    lane.x[...] = 0  # rows that nobody has run on zeros
                yield Call([slots[row] for row in rows], rows, lane.x, partial(_run, lane, lane.step))
            else:
                scattered += [slots[row] for row in rows]
        yield from self._common_calls(scattered, self._run_copies)

    def last_calls(self, ready: Sequence[int], items: int) -> Iterator[Call]:
        """Calls for the first ``items`` of a block, less than all of it; the states stay as they are."""
        return self._common_calls(ready, partial(self._run_last, items))

    # Who lies where.

    def _place(self, slot: int) -> tuple[Lane, int]:
        index, row = divmod(self._row[slot], self._size)
        return self._lanes[index], row

    def _slots_of(self, index: int) -> list[int]:
        return self._slot[index * self._size : (index + 1) * self._size]

    def _draw_together(self, wanted: set[int], kept: set[int]) -> None:
        """Fill lanes that many slots are ready on with ready ones from lanes with few, in exchange for those
        that have to wait."""
        mixed = []
        for index in range(len(self._lanes)):
            slots = self._slots_of(index)
            count = sum(slot in wanted for slot in slots)
            if count and not kept.isdisjoint(slots):
                mixed.append((count, index))
        mixed.sort(reverse=True)
        left = sum(count for count, _ in mixed)
        for place, (count, index) in enumerate(mixed):
            slots = self._slots_of(index)
            out = [slot for slot in slots if slot in kept]
            count = sum(slot in wanted for slot in slots)  # fewer, if it has given some
            left -= count
            if left < len(out) or count * _WORTH < self._size:
                return
            givers = (i for _, i in reversed(mixed[place + 1 :]))
            left -= self._fill_up(index, out, givers, wanted)

    def _fill_up(self, index: int, out: list[int], givers: Iterator[int], wanted: set[int]) -> int:
        """Exchange the slots ``out`` of a lane for ready ones of the givers; how many were given."""
        total = len(out)
        for giver in givers:
            given = [slot for slot in self._slots_of(giver) if slot in wanted][: len(out)]
            self._exchange(out[: len(given)], given)
            out = out[len(given) :]
            if not out:
                break
        return total

    def _exchange(self, some: Sequence[int], others: Sequence[int]) -> None:
        """Exchange the rows of slots on one lane with those of as many on another one."""
        if not some:
            return
        (one, _), (two, _) = self._place(some[0]), self._place(others[0])
        here = [self._row[slot] % self._size for slot in some]
        there = [self._row[slot] % self._size for slot in others]
        first, second = ([state[rows] for state in lane.state] for lane, rows in ((one, here), (two, there)))
        rows = [self._row[slot] for slot in (*others, *some)]

        def move() -> None:
            for lane, places, states in ((one, here, second), (two, there, first)):
                for state, values in zip(lane.state, states, strict=True):
                    state[places] = values
            for slot, row in zip((*some, *others), rows, strict=True):
                self._row[slot], self._slot[row] = row, slot

        try:
            move()
        except BaseException:  # an interrupt; half of an exchange must not stay
            move()
            raise

    # Running copies.

    def _common_calls(
        self, slots: Sequence[int], run: Callable[[Sequence[int]], tuple[Array, ...]]
    ) -> Iterator[Call]:
        for start in range(0, len(slots), self._size):
            some = slots[start : start + self._size]
            yield Call(some, range(len(some)), self._common.x, partial(run, some))

    def _run_copies(self, slots: Sequence[int]) -> tuple[Array, ...]:
        self._bring(slots)
        y = _run(self._common, self._common.step)
        for lane, here, rows in self._parts(slots):
            for left, kept in zip(self._common.state, lane.state, strict=True):
                kept[rows] = left[here]
        return y

    def _run_last(self, items: int, slots: Sequence[int]) -> tuple[Array, ...]:
        if not items:
            return tuple(y[:, :0] for y in self._common.y)
        self._bring(slots)
        return _run(self._common, partial(self._common.step_short, items))

    def _bring(self, slots: Sequence[int]) -> None:
        """Copy states to the common lane; rows left over run on zeros."""
        for lane, here, rows in self._parts(slots):
            for given, kept in zip(self._common.state, lane.state, strict=True):
                given[here] = kept[rows]
        self._common.x[len(slots) :] = 0
        for given in self._common.state:
            given[len(slots) :] = 0

    def _parts(self, slots: Sequence[int]) -> Iterator[tuple[Lane, list[int], list[int]]]:
        """The slots lane by lane: the lane, their rows in the common lane, and those in it."""
        parts: dict[int, tuple[list[int], list[int]]] = {}
        for here, slot in enumerate(slots):
            index, row = divmod(self._row[slot], self._size)
            places = parts.setdefault(index, ([], []))
            places[0].append(here)
            places[1].append(row)
        for index, (ours, rows) in parts.items():
            yield self._lanes[index], ours, rows


def _run(lane: Lane, step: Callable[[], tuple[Array, ...] | None]) -> tuple[Array, ...]:
    try:
        return step() or lane.y
    except BaseException:
        lane.x[...] = 0  # or what the graph cannot run would be in the way of others
        raise
