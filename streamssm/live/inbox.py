"""What a live source has received and nobody has read yet: bounded, in order, every loss counted.

One thread (or a callback of an audio driver) puts, one other gets. Beyond the capacity the policy says
what happens: ``block`` makes the receiver wait, ``drop-oldest`` leaves the oldest items out and a gap in
their place, ``spill`` moves what is too much to a temporary file, from where it is read back in order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm import waiting
from streamssm.errors import UsageError
from streamssm.live.queue import POLICIES, SPILL_LIMIT, Policy
from streamssm.live.spill import Chunk, Spiller
from streamssm.sources.base import DROPPED, Gap, Request

Array = npt.NDArray[Any]

_UNWRITTEN = 1 << 24  # bytes beyond the capacity that may wait in memory for the disk


@dataclass(frozen=True)
class Piece:
    """Items ``[n, *shape]`` that followed each other, and the gaps before them.

    ``at`` is the ``time.perf_counter`` moment at which the last of them was there. ``ended`` says that
    no more will come; n = 0 without it means that the wait was over.
    """

    items: Array
    gaps: tuple[Gap, ...] = ()
    at: float | None = None
    ended: bool = False


class Inbox:
    """A queue of items ``shape`` between a receiver and a reader.

    ``capacity`` is how many items may wait in memory; ``spill_limit`` how many bytes more on disk, in
    ``folder`` (default: TMPDIR, else /var/tmp). When that is full too, the oldest are dropped.
    ``accepted`` counts the items that came, ``dropped`` and ``spilled`` how many of them were dropped or
    written to disk; ``high_water`` is the most that waited at a time.

    Raises:
        UsageError: the capacity is not positive, or there is no such policy.
        OutputError: there is no room for a temporary file.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        capacity: int,
        policy: Policy = "block",
        folder: Path | None = None,
        spill_limit: int = SPILL_LIMIT,
    ):
        if capacity < 1:
            raise UsageError(f"a queue of {capacity} items holds nothing; give it 1 or more")
        if policy not in POLICIES:
            raise UsageError(f"there is no policy {policy!r} on overrun; use {', '.join(POLICIES)}")
        self.empty = np.empty((0, *shape), dtype)
        self.item_bytes = max(1, int(np.prod(shape, dtype=int)) * self.empty.itemsize)  # of an item
        self.capacity, self._policy = capacity, policy
        self.changed = threading.Condition()
        self._queue: deque[Chunk | Gap] = deque()
        self._items = 0  # in the queue
        self.memory = 0  # of these, in memory
        self._ended = self._released = self.closed = False
        self._error: Exception | None = None
        self.accepted = self.dropped = self.spilled = self.high_water = 0
        self.failure: str | None = None  # why spilling was given up
        self._limit, self._spill = capacity, None
        if policy == "spill" and spill_limit >= self.item_bytes:
            self._limit += spill_limit // self.item_bytes
            self._spill = Spiller(self, folder, spill_limit)

    @property
    def waiting(self) -> int:
        """Items that nobody has read yet."""
        return self._items

    def counters(self) -> dict[str, int]:
        """What happened to the items so far."""
        return {
            "capacity": self.capacity,
            "accepted": self.accepted,
            "dropped": self.dropped,
            "spilled": self.spilled,
            "high_water": self.high_water,
        }

    # The receiver's side.

    def put(self, items: Array, at: float | None = None, wait: bool = True) -> bool:
        """Queue a copy of ``items [n, *shape]``, received at ``at`` (now); False once nobody wants more.

        Waits for room under ``block``, and for a slow disk under ``spill``. A callback that must not
        wait says so: then something is dropped instead, under ``block`` the oldest.
        """
        moment = time.perf_counter() if at is None else at
        size = max(1, self.capacity // 4)  # a part as large as the queue would wait until it is empty
        for start in range(0, len(items), size):
            part = np.array(items[start : start + size], self.empty.dtype)
            with self.changed:
                self._wait_for_room(len(part), wait)
                if self._ended or self.closed:
                    return False
                self.accepted += len(part)
                if not self._released and self._items + len(part) > self._limit:
                    self._make_room(len(part))
                if self._released or self.memory + len(part) <= self._most_in_memory():
                    self._append(Chunk(len(part), moment, part))
                else:  # the disk is too slow, or full: what is on it already is kept
                    self._drop(len(part))
                self.changed.notify_all()
        return not (self._ended or self.closed)

    def lost(self, gap: Gap) -> None:
        """Say that something is missing at this point of the sequence."""
        with self.changed:
            if not (self._ended or self.closed):
                self._insert([*self._take_gaps(last=True), gap], last=True)
                self.changed.notify_all()

    def release(self) -> None:
        """Take what still comes without a limit: the receiver is to stop, and must not wait for room."""
        with self.changed:
            self._released = True
            self.changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; ``error`` is raised to the reader after what is queued."""
        with self.changed:
            if not self._ended:
                self._ended, self._error = True, error
                self.changed.notify_all()

    def _append(self, chunk: Chunk) -> None:
        if self._spill is not None and self.memory + chunk.count > self.capacity:
            self._spill.offer(chunk)
        self._queue.append(chunk)
        self._items += chunk.count
        self.memory += chunk.count
        self.high_water = max(self.high_water, self._items)

    def _wait_for_room(self, count: int, wait: bool) -> None:
        """Wait until a chunk of at most the capacity fits, or nobody wants it any more."""

        def fits() -> bool:
            if self._ended or self.closed or self._released:
                return True
            if self._spill is None:
                return self._items + count <= self.capacity
            return self._spill.idle or self.memory + count <= self._most_in_memory()

        if wait and (self._policy == "block" or self._spill is not None):
            self.changed.wait_for(fits)

    def _most_in_memory(self) -> int:
        if self._spill is None or self.failure is not None:
            return self.capacity
        return self.capacity + _UNWRITTEN // self.item_bytes

    def _drop(self, count: int) -> None:
        """Leave out the latest items."""
        self.dropped += count
        self._insert([*self._take_gaps(last=True), Gap(DROPPED, count)], last=True)

    def _make_room(self, count: int) -> None:
        """Drop more than a chunk needs: a reader that is too slow gets few long gaps, not many short ones,
        each of which would cost it the time to settle."""
        room = max(count, self.capacity // 4)
        while self._items > self._limit - room:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        gaps = self._take_gaps(last=False)
        chunk = self._queue.popleft()
        assert isinstance(chunk, Chunk)  # the queue holds too many items, so it holds some
        chunk.queued = False
        self._items -= chunk.count
        if chunk.items is not None:
            self.memory -= chunk.count
        elif self._spill is not None:
            self._spill.free(chunk.count)
        self.dropped += chunk.count
        self._insert([*gaps, Gap(DROPPED, chunk.count), *self._take_gaps(last=False)], last=False)

    def _take_gaps(self, last: bool) -> list[Gap]:
        """Take the gaps at one end of the queue out of it."""
        gaps: list[Gap] = []
        while self._queue and isinstance(gap := self._queue[-1 if last else 0], Gap):
            self._queue.pop() if last else self._queue.popleft()
            gaps.append(gap)
        return gaps[::-1] if last else gaps

    def _insert(self, gaps: Iterable[Gap], last: bool) -> None:
        joined = joined_gaps(gaps)
        if last:
            self._queue.extend(joined)
        else:
            self._queue.extendleft(reversed(joined))

    # The reader's side.

    def get(self, count: int, timeout: float | None = None) -> Piece:
        """The next one to ``count`` items, as soon as there are any; none at the end, or after ``timeout``
        seconds. A piece never spans a gap. A stop that is requested leaves the wait.

        Raises:
            Exception: what :meth:`end` was given, after all items and gaps before it.
        """
        with self.changed:
            ready = self._is_ready()
        for left in waiting.slices(timeout) if not ready else ():
            with self.changed:
                if self.changed.wait_for(self._is_ready, left):
                    break
        with self.changed:
            gaps, chunks = self._take(count)
            if not chunks and not gaps and self._error is not None:
                raise self._error
            ended = self._ended and not chunks
        # a disk may be slow, and a callback must not wait for it
        parts = [self._items_of(chunk) for chunk in chunks]
        items = parts[0] if len(parts) == 1 else np.concatenate([self.empty, *parts])
        return Piece(items, gaps, chunks[-1].at if chunks else None, ended)

    def _is_ready(self) -> bool:
        # gaps alone wait for the items after them
        return self._ended or self._items > 0

    def _take(self, count: int) -> tuple[tuple[Gap, ...], list[Chunk]]:
        """Take the first gaps and items out of the queue; the reader's own from now on."""
        if not self._is_ready():
            return (), []
        gaps = tuple(self._take_gaps(last=False))
        chunks: list[Chunk] = []
        while count and self._queue and isinstance(first := self._queue[0], Chunk):
            chunk = self._take_chunk(first, min(count, first.count))
            chunks.append(chunk)
            count -= chunk.count
        self.changed.notify_all()
        return gaps, chunks

    def _take_chunk(self, chunk: Chunk, count: int) -> Chunk:
        """The first items of the first chunk; the rest of it stays."""
        self._queue.popleft()
        chunk.queued = False
        taken, rest = chunk.cut(count, self.item_bytes)
        if rest.count:
            self._queue.appendleft(rest)
        self._items -= count
        if taken.items is not None:
            self.memory -= count
        elif self._spill is not None:
            self._spill.hold(count)
        return taken

    def _items_of(self, chunk: Chunk) -> Array:
        if chunk.items is not None:
            return chunk.items
        assert self._spill is not None
        return self._spill.read(chunk)

    def close(self) -> None:
        """Nobody reads any more: whoever waits in :meth:`put` is let go, and the spill file is removed."""
        with self.changed:
            self.closed = True
            self._queue.clear()
            self._items = self.memory = 0
            self.changed.notify_all()
        if self._spill is not None:
            self._spill.close()


def open_inbox(request: Request, shape: Sequence[int], rate: float | None = None) -> Inbox:
    """The inbox that the user asked for, of frames ``shape`` at ``rate`` a second (None: the model's).

    Raises:
        UsageError: the queue is given in seconds, but there is no clock.
        OutputError: there is no room for a temporary file.
    """
    queue = request.queue
    capacity = queue.capacity(rate, request.input.rate)
    return Inbox(shape, request.input.dtype, capacity, queue.policy, queue.folder, queue.spill_limit)


def joined_gaps(gaps: Iterable[Gap]) -> list[Gap]:
    """Gaps at one place, one for each reason: known items and seconds are added up, what is unknown
    stays apart. So a connection that comes and goes unread does not fill the memory."""
    found: dict[tuple[str, bool, bool], Gap] = {}
    for gap in gaps:
        key = (gap.reason, gap.items is None, gap.seconds is None)
        if (before := found.get(key)) is None:
            found[key] = gap
            continue
        items = None if gap.items is None else gap.items + (before.items or 0)
        seconds = None if gap.seconds is None else gap.seconds + (before.seconds or 0.0)
        found[key] = Gap(gap.reason, items, seconds)
    return list(found.values())
