"""Many streams of one model in fixed slots, stepped as one batch.

A backend call on many rows costs far less than as many calls on one. Streams come and go and are
fed at different rates; a step takes those that have a whole block, and no others (see
:mod:`streamssm.backends.slots`). What a stream returns does not depend on who else is in the pool:
at one number of slots and one block it is the same to the byte.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm.backends import Call
from streamssm.chunks import ChunkRule
from streamssm.errors import BackendError, PoolFullError, UsageError
from streamssm.frames import frame_rules
from streamssm.slot import Slot, put_rows
from streamssm.stream import Result, StreamState

if TYPE_CHECKING:
    from streamssm.model import Model

Array = npt.NDArray[Any]
Key = Hashable

_SMALL = 1 << 14  # bytes of an output, all rows of a call


class Pool:
    """Streams of one model by key, made by :meth:`Model.pool`.

    :meth:`push`, :meth:`push_rows`, :meth:`ready` and :meth:`wait` may be called from any thread at
    any time; the other methods, which touch the state, wait for a running :meth:`step` to finish.
    """

    def __init__(
        self, model: Model, slots: int, block: int, *, gather: float, limit: int, allow_nonfinite: bool
    ) -> None:
        """Use :meth:`Model.pool`, which checks the arguments."""
        self._model, self._block, self._gather, self._limit = model, block, gather, limit
        spec = model.manifest.input
        self._allow = allow_nonfinite
        self._rule = ChunkRule(spec, None, allow_nonfinite)
        self._frames = frame_rules(model.manifest)
        self._states = model.backend.slots(block, slots)
        # room for a block and what comes while it is run
        self._stage = np.zeros((slots, 2 * block, *spec.shape), self._rule.dtype)
        self._slots: dict[Key, Slot] = {}
        self._free = list(range(slots))  # a heap
        self._ready: dict[Key, Slot] = {}  # those that a step would run, in the order they became so
        self._behind = False  # whether a stream that was just run has another block already
        self._paused: set[Key] = set()
        self._stepping = threading.RLock()  # the states
        self._lock = threading.RLock()  # the slots and what waits in them
        self._changed = threading.Condition(self._lock)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stepping, self._lock:
            for key in list(self._slots):
                self._forget(key)

    def __contains__(self, key: Key) -> bool:
        return key in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._slots))

    @property
    def model(self) -> Model:
        """The model that the streams run."""
        return self._model

    @property
    def slots(self) -> int:
        """Streams that can be open at a time."""
        return len(self._stage)

    @property
    def block(self) -> int:
        """Input items a stream gives to a step."""
        return self._block

    def position(self, key: Key) -> int:
        """Input items accepted from a stream since its start."""
        return self._slot(key).position

    def pending(self, key: Key) -> int:
        """Items accepted but not yet run."""
        slot = self._slot(key)
        return slot.position - min(slot.done, slot.position)

    # Coming and going.

    def open(self, key: Key, snapshot: bytes | None = None) -> None:
        """Give a stream a slot, at item 0 or where a snapshot of a stream left off.

        Raises:
            UsageError: there is a stream of this key.
            PoolFullError: no slot is free.
            SnapshotError: the snapshot is not one of a single stream of this model.
        """
        from streamssm.snapshot import decode_one

        state = None if snapshot is None else decode_one(self._model, snapshot).state
        with self._stepping, self._lock:
            if key in self._slots:
                raise UsageError(f"there is already a stream {key!r}; close it first")
            if not self._free:
                raise PoolFullError(
                    f"all {self.slots} slots are taken; close a stream, or open a larger pool"
                )
            row = heapq.heappop(self._free)  # few lanes, well filled
            slot = self._slots[key] = Slot(key, row, self._stage[row])
            self._fill(slot, state)

    def close(self, key: Key) -> None:
        """Forget a stream at once, and free its slot; :meth:`flush` ends one properly.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._lock:
            self._slot(key)
            self._forget(key)
            self._notify()

    def reset(self, key: Key) -> None:
        """Make a stream as new, at item 0; what waits is dropped.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._lock:
            self._fill(self._slot(key), None)

    def snapshot(self, key: Key, extra: dict[str, str] | None = None) -> bytes:
        """A stream as bytes, the same as of a :class:`Stream` at this item; see :meth:`open` and
        :meth:`Model.resume`.

        Raises:
            UsageError: there is no stream of this key.
            StreamEndedError: it is being flushed.
        """
        from streamssm.snapshot import Snapshot, encode

        with self._stepping, self._lock:
            slot = self._slot(key)
            slot.require_open()
            slot.require_whole()
            state = StreamState(self._states.read(slot.row), slot.waiting()[None], slot.position, ended=False)
        return encode(self._model, Snapshot(state, self._block, None, self._allow, dict(extra or {})))

    def pause(self, key: Key) -> None:
        """Leave a stream out of steps until :meth:`resume`; it may still be pushed.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._lock:
            self._slot(key)
            self._paused.add(key)
            self._ready.pop(key, None)
            self._notify()

    def resume(self, key: Key) -> None:
        """End a pause.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._lock:
            slot = self._slot(key)
            self._paused.discard(key)
            self._note(slot)

    # Items in, results out.

    def push(self, key: Key, chunk: Array) -> None:
        """Give a stream more input, of any length; it is copied, and run by later steps.

        Raises:
            InputError: the chunk does not fit the model; nothing of it was taken.
            QueueFullError: too many items wait already; nothing was taken.
            UsageError: there is no stream of this key.
            StreamEndedError: it is being flushed.
        """
        items = chunk if self._rule.plain(chunk) else self._rule.accept(chunk)[0]
        with self._lock:
            slot = self._slots.get(key) or self._slot(key)
            if slot.ending or slot.items + len(items) > self._limit:
                slot.require_room(len(items), self._limit)
            slot.put(items)
            if slot.items >= self._block:
                self._note(slot)

    def push_rows(self, keys: Sequence[Key], chunks: Array) -> None:
        """Give each of these streams one row of ``chunks [n, T, *item_shape]``: :meth:`push` for
        what arrives together, such as the channels of one device, at a fraction of its cost.

        Raises:
            InputError: the chunks do not fit the model; nothing was taken.
            QueueFullError: too many items wait in one of the streams; nothing was taken.
            UsageError: there is no stream of one of the keys, or one comes twice.
            StreamEndedError: one of them is being flushed; nothing was taken.
        """
        rows = ChunkRule(self._model.manifest.input, len(keys), self._allow).accept(chunks)
        with self._lock:
            slots = [self._slot(key) for key in keys]
            if len(set(keys)) < len(slots):
                raise UsageError("a key comes twice; give each stream one chunk")
            for slot in slots:
                slot.require_room(rows.shape[1], self._limit)
            put_rows(slots, self._stage, rows)
            for slot in slots:
                if slot.items >= self._block:
                    self._note(slot)

    def flush(self, key: Key) -> None:
        """End a stream: later steps run what waits, release the look-ahead and close it. The last
        result of the stream, which may be empty, comes when ``key in pool`` turns false.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._lock:
            slot = self._slot(key)
            if slot.ending:
                return
            manifest, position = self._model.manifest, slot.position
            hop, pending = manifest.input.hop, slot.items
            tail = -(-(pending + manifest.lookahead) // hop) * hop if position else 0
            slot.put(np.zeros((tail - pending, *manifest.input.shape), self._rule.dtype))
            slot.position, slot.ending = position, True  # padding does not count
            self._note(slot)

    @property
    def behind(self) -> bool:
        """Whether a stream that the last step ran has another block already."""
        return self._behind

    def ready(self) -> int:
        """Streams that the next step would run."""
        return len(self._ready)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a step is worth its while: every open stream is ready, one has been for ``gather``
        seconds, or one is more than a block behind. False if nothing is ready after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                first = next(iter(self._ready.values()), None)
                due = None if first is None else first.since + self._gather
                if due is not None and (self._behind or self._all_ready() or due <= now):
                    return True
                if deadline is not None and deadline <= now:
                    return bool(self._ready)
                ends = [at for at in (due, deadline) if at is not None]
                self._changed.wait(min(ends) - now if ends else None)

    def step(self) -> list[tuple[Key, Result]]:
        """Run one block of every stream that has one; the results by key, empty ones included.

        Streams that are being flushed run their last items too. Does not wait; see :meth:`wait`.

        Raises:
            BackendError: the run failed; every stream is as it was. If only a later part of the
                streams fails, the results of the others are returned, and the next step, which runs
                that part alone, fails.
            StreamTornError: an interrupt (KeyboardInterrupt) had cut a stream's step short; reset it.
        """
        results: list[tuple[Key, Result]] = []
        with self._stepping:
            with self._lock:
                self._behind = False
                ready = {slot.row: slot for slot in self._ready.values()}
                ready = {row: slot for row, slot in ready.items() if slot.suspect} or ready
                others = [slot.row for slot in self._slots.values() if slot.row not in ready]
            for items, call in self._calls(ready, others):
                slots = [ready[row] for row in call.slots]
                try:
                    results += self._run(call, items, slots)
                except Exception:
                    for slot in slots:
                        slot.suspect = True
                    if not results:
                        raise
                    break
        return results

    def _calls(self, ready: dict[int, Slot], others: list[int]) -> Iterator[tuple[int, Call]]:
        """What is to be run, and how many items of each stream: a block, or what is left at the end."""
        whole = [row for row, slot in ready.items() if slot.items >= self._block]
        last = sorted((slot.items, row) for row, slot in ready.items() if slot.items < self._block)
        yield from (
            (self._block, call) for call in self._states.calls(whole, [*others, *(r for _, r in last)])
        )
        for items, group in itertools.groupby(last, key=lambda entry: entry[0]):
            yield from ((items, call) for call in self._states.last_calls([row for _, row in group], items))

    def _run(self, call: Call, items: int, slots: list[Slot]) -> list[tuple[Key, Result]]:
        for slot in slots:
            slot.require_whole()
        with self._lock:
            for row, slot in zip(call.rows, slots, strict=True):
                call.x[row, :items] = slot.stage[:items]
        try:
            outputs = call.run()
            with self._lock:
                results = self._results(call.rows, slots, outputs)
                for slot in slots:
                    self._advance(slot, items)
        except BackendError:
            raise
        except BaseException:
            for slot in slots:
                slot.torn = True
            raise
        return results

    def _advance(self, slot: Slot, items: int) -> None:
        """A stream has been run; it may be ready again, behind those that have waited longer."""
        slot.suspect = False
        if items < self._block:
            self._forget(slot.key)
        else:
            slot.drop(items)
            self._ready.pop(slot.key, None)
            self._note(slot)
            self._behind |= slot.key in self._ready

    def _results(
        self, rows: Sequence[int], slots: list[Slot], outputs: tuple[Array, ...]
    ) -> list[tuple[Key, Result]]:
        """The frames that each stream returns of these, copies."""
        # small ones together, which is cheaper; a large one must not be kept in memory by another
        small = sum(y.nbytes for y in outputs) <= _SMALL
        if small:
            outputs = tuple(y.copy() for y in outputs)
        results: list[tuple[Key, Result]] = []
        for row, slot in zip(rows, slots, strict=True):
            parts = [slot.new_frames(rule, y[row]) for rule, y in zip(self._frames, outputs, strict=True)]
            results.append((slot.key, self._present(parts if small else [part.copy() for part in parts])))
        return results

    def _present(self, parts: list[Array]) -> Result:
        if len(parts) == 1:
            return parts[0]
        return {o.name: part for o, part in zip(self._model.manifest.outputs, parts, strict=True)}

    # Slots.

    def _slot(self, key: Key) -> Slot:
        slot = self._slots.get(key)
        if slot is None:
            raise UsageError(f"there is no stream {key!r} in the pool; open it first")
        return slot

    def _note(self, slot: Slot) -> None:
        """A stream may have become ready now."""
        key = slot.key
        if key in self._ready or key in self._paused:
            return
        if slot.ending or slot.items >= self._block:
            slot.since = time.monotonic()
            self._ready[key] = slot
            self._notify()

    def _all_ready(self) -> bool:
        return len(self._ready) == len(self._slots) - len(self._paused)

    def _notify(self) -> None:
        """Wake who waits where it makes a difference to him: the first is ready, or all are."""
        if self._ready and (len(self._ready) == 1 or self._all_ready()):
            self._changed.notify_all()

    def _forget(self, key: Key) -> None:
        heapq.heappush(self._free, self._slots.pop(key).row)
        self._ready.pop(key, None)
        self._paused.discard(key)

    def _fill(self, slot: Slot, saved: StreamState | None) -> None:
        """Set a slot to a state, or to item 0."""
        slot.clear()
        self._ready.pop(slot.key, None)
        self._states.write(slot.row, None if saved is None else saved.states)
        if saved is not None:
            slot.put(saved.pending[0])
            slot.position, slot.done = saved.position, saved.position - len(saved.pending[0])
        self._note(slot)
