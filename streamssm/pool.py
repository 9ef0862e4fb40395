"""Many streams of one model in fixed slots, stepped as one batch.

A backend call on many rows costs far less than as many calls on one. Streams come and go and are
fed at different rates; a step takes those that have a whole block, and no others (see
:mod:`streamssm.backends.slots`). What a stream returns does not depend on who else is in the pool:
at one number of slots and one block it is the same to the byte.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm.batch_step import BatchStep
from streamssm.chunks import ChunkRule
from streamssm.collect import ByKey, ByRows, Key, Names, Rows
from streamssm.errors import PoolFullError, UsageError
from streamssm.frames import frame_rules
from streamssm.readiness import Readiness
from streamssm.slot import Slot, Table
from streamssm.stream import Result, StreamState

if TYPE_CHECKING:
    from streamssm.model import Model

__all__ = ["Array", "Key", "Pool", "Rows"]

Array = npt.NDArray[Any]


class Pool:
    """Streams of one model by key, made by :meth:`Model.pool`.

    :meth:`push`, :meth:`push_rows`, :meth:`ready` and :meth:`wait` may be called from any thread at
    any time; the other methods, which touch the state, wait for a running :meth:`step` to finish.
    """

    def __init__(
        self, model: Model, slots: int, block: int, *, gather: float, limit: int, allow_nonfinite: bool
    ) -> None:
        """Use :meth:`Model.pool`, which checks the arguments."""
        self._model, self._block, self._limit = model, block, limit
        spec = model.manifest.input
        self._allow = allow_nonfinite
        self._rule = ChunkRule(spec, None, allow_nonfinite)
        self._names = tuple(output.name for output in model.manifest.outputs)
        self._states = model.backend.slots(block, slots)
        self._table = Table(slots, block, spec.shape, self._rule.dtype)
        self._slots: dict[Key, Slot] = {}
        self._free = list(range(slots))  # a heap
        self._known = Names()
        self._stepping = threading.RLock()  # the states
        self._lock = threading.RLock()  # the slots and what waits in them
        self._readiness = Readiness(self._table, self._lock, gather)
        rules = frame_rules(model.manifest)
        self._step = BatchStep(self._table, self._states, rules, self._readiness, self._lock, self._forget)

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

    def __bool__(self) -> bool:
        return True  # also while nobody has joined

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._slots))

    @property
    def model(self) -> Model:
        """The model that the streams run."""
        return self._model

    @property
    def slots(self) -> int:
        """Streams that can be open at a time."""
        return len(self._table)

    @property
    def block(self) -> int:
        """Input items a stream gives to a step."""
        return self._block

    def position(self, key: Key) -> int:
        """Input items accepted from a stream since its start."""
        return int(self._table.position[self._slot(key).row])

    def pending(self, key: Key) -> int:
        """Items accepted but not yet run."""
        row, table = self._slot(key).row, self._table
        return max(0, int(table.position[row] - table.done[row]))

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
            self._fill(row := self._free[0], state)  # the least: few lanes, well filled
            heapq.heappop(self._free)
            self._slots[key] = Slot(self._table, key, row)
            self._table.take(row, key)
            self._known.forget()
            self._readiness.note(row)

    def close(self, key: Key) -> None:
        """Forget a stream at once, and free its slot; :meth:`flush` ends one properly.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._lock:
            self._slot(key)
            self._forget(key)
            self._readiness.tell()

    def reset(self, key: Key) -> None:
        """Make a stream as new, at item 0; what waits is dropped.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._lock:
            self._fill(row := self._slot(key).row, None)
            self._readiness.note(row)

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
            waiting, position = self._table.waiting(slot.row)[None], int(self._table.position[slot.row])
            state = StreamState(self._states.read(slot.row), waiting, position, ended=False)
        return encode(self._model, Snapshot(state, self._block, None, self._allow, dict(extra or {})))

    def pause(self, key: Key) -> None:
        """Leave a stream out of steps until :meth:`resume`; it may still be pushed.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._lock:
            row = self._slot(key).row
            self._table.set_paused(row, True)
            self._table.set_ready(row, False)
            self._readiness.tell()

    def resume(self, key: Key) -> None:
        """End a pause.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._lock:
            row = self._slot(key).row
            self._table.set_paused(row, False)
            self._readiness.note(row)

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
            waiting = self._table.put(slot.row, items, self._limit)
            if waiting >= self._block:
                self._readiness.note(slot.row)
            elif waiting < 0:
                slot.require_room(len(items), self._limit)

    def push_rows(self, keys: Sequence[Key], chunks: Array) -> None:
        """Give each of these streams one row of ``chunks [n, T, *item_shape]``: :meth:`push` for
        what arrives together, such as the channels of one device, at a fraction of its cost.

        The same tuple (or range) of keys, passed again and again, is looked up once.

        Raises:
            InputError: the chunks do not fit the model; nothing was taken.
            QueueFullError: too many items wait in one of the streams; nothing was taken.
            UsageError: there is no stream of one of the keys, or one comes twice.
            StreamEndedError: one of them is being flushed; nothing was taken.
        """
        items = self._rule.accept_rows(chunks, len(keys))
        with self._lock:
            rows, table = self._rows_of(keys), self._table
            if not len(rows):
                return
            if table.ending[rows].any() or int(table.items[rows].max()) + items.shape[1] > self._limit:
                for key in keys:
                    self._slot(key).require_room(items.shape[1], self._limit)
            table.put_rows(rows, items)
            self._readiness.note_rows(rows)

    def _rows_of(self, keys: Sequence[Key]) -> Array:
        """The rows of streams; raises UsageError."""
        rows = self._known.rows(keys)
        if rows is None:
            rows = np.array([self._slot(key).row for key in keys], np.intp)
            if len(np.unique(rows)) < len(rows):
                raise UsageError("a key comes twice; give each stream one chunk")
            self._known.note(keys, rows)
        return rows

    def flush(self, key: Key) -> None:
        """End a stream: later steps run what waits, release the look-ahead and close it. The last
        result of the stream, which may be empty, comes when ``key in pool`` turns false.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._lock:
            slot, table = self._slot(key), self._table
            if slot.ending:
                return
            row, spec, ahead = slot.row, self._model.manifest.input, self._model.manifest.lookahead
            position, pending = int(table.position[row]), int(table.items[row])
            tail = -(-(pending + ahead) // spec.hop) * spec.hop if position else 0
            table.put(row, np.full((tail - pending, *spec.shape), spec.filler, self._rule.dtype))
            table.position[row] = position  # padding does not count
            table.end(row)
            self._readiness.note(row)

    @property
    def behind(self) -> bool:
        """Whether a stream that the last step ran has another block already."""
        return self._readiness.behind

    def ready(self) -> int:
        """Streams that the next step would run."""
        return self._table.ready_count

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a step is worth its while: every open stream is ready, one has been for ``gather``
        seconds, or one is more than a block behind. False if nothing is ready after ``timeout`` seconds.
        """
        return self._readiness.wait(timeout)

    def step(self) -> list[tuple[Key, Result]]:
        """Run one block of every stream that has one; the results by key, empty ones included.

        Streams that are being flushed run their last items too. Does not wait; see :meth:`wait`.

        Raises:
            BackendError: the run failed; every stream is as it was. If only a later part of the
                streams fails, the results of the others are returned, and the next step, which runs
                that part alone, fails.
            StreamTornError: an interrupt (KeyboardInterrupt) had cut a stream's step short; reset it.
        """
        results = ByKey(self._table, self._names)
        with self._stepping:
            self._step.run(results)
        return results.found

    def step_rows(self, copy: bool = True) -> list[Rows]:
        """:meth:`step` for streams that are fed by :meth:`push_rows`: the results of those that get equally
        many frames together, as arrays. While none begins or ends that is one entry.

        The tuple of keys is the same object as long as the same streams are run, and may go to
        :meth:`push_rows`. Without ``copy`` the arrays may be the backend's own, which the next step
        overwrites: for outputs of megabytes, such as the logits of many streams.

        Raises:
            BackendError, StreamTornError: as of :meth:`step`.
        """
        results = ByRows(self._table, self._names, copy)
        with self._stepping:  # no stream may come or go before the keys are noted
            self._step.run(results)
            with self._lock:
                return [Rows(self._keys_of(rows, keys), y) for rows, keys, y in results.joined()]

    def _keys_of(self, rows: Array, keys: Array) -> tuple[Key, ...]:
        """Keys as a tuple, to be known again while their streams are all there."""
        return self._known.keys(rows, keys) if self._table.taken[rows].all() else tuple(keys.tolist())

    # Slots.

    def _slot(self, key: Key) -> Slot:
        slot = self._slots.get(key)
        if slot is None:
            raise UsageError(f"there is no stream {key!r} in the pool; open it first")
        return slot

    def _forget(self, key: Key) -> None:
        row = self._slots.pop(key).row
        self._table.leave(row)
        self._known.forget()
        heapq.heappush(self._free, row)

    def _fill(self, row: int, saved: StreamState | None) -> None:
        """Set a slot to a state, or to item 0; a failure leaves what waits in it as it is."""
        table = self._table
        self._states.write(row, None if saved is None else saved.states)
        table.clear(row)
        if saved is not None:
            pending = saved.pending[0]
            table.put(row, pending)
            table.position[row], table.done[row] = saved.position, saved.position - len(pending)
