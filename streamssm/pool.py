"""Many streams of one model in fixed slots, stepped as one batch.

A backend call on 64 rows costs far less than 64 calls on one. Streams come and go and are fed at
different rates, so a step runs the rows that have a whole block and leaves the others as they are:
they are computed on whatever lies in their buffers, and their state is put back.

At one number of slots and one block a stream gives the same bytes whatever the other streams do.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm.chunks import ChunkRule
from streamssm.errors import PoolFullError, QueueFullError, StreamEndedError, UsageError
from streamssm.frames import FrameRule, frame_rules
from streamssm.stream import Result, StreamState

if TYPE_CHECKING:
    from streamssm.model import Model

Array = npt.NDArray[Any]
Key = Hashable


@dataclass(eq=False)
class _Slot:
    """One stream: its row, and the items it has been given but not yet run."""

    row: int
    waiting: deque[Array] = field(default_factory=deque)  # [T, *item_shape] each
    items: int = 0  # in `waiting`, padding included
    position: int = 0  # items accepted
    done: int = 0  # items run, padding included
    ending: bool = False
    paused: bool = False
    since: float = 0.0  # when its block became whole

    def copy_to(self, target: Array) -> None:
        """Copy the first ``len(target)`` waiting items, which stay until they are run."""
        at = 0
        for chunk in self.waiting:
            part = chunk[: len(target) - at]
            target[at : at + len(part)] = part
            at += len(part)
            if at == len(target):
                return

    def drop(self, count: int) -> None:
        """Take the first ``count`` waiting items off the queue: they have been run."""
        self.items, self.done = self.items - count, self.done + count
        while count:
            chunk = self.waiting.popleft()
            if len(chunk) > count:
                self.waiting.appendleft(chunk[count:])
            count -= min(count, len(chunk))


class Pool:
    """Streams of one model by key, made by :meth:`Model.pool`.

    :meth:`push`, :meth:`ready` and :meth:`wait` may be called from any thread at any time; the
    other methods, which touch the state, wait for a running :meth:`step` to finish.
    """

    def __init__(
        self, model: Model, slots: int, block: int, *, gather: float, limit: int, allow_nonfinite: bool
    ) -> None:
        """Use :meth:`Model.pool`, which checks the arguments."""
        self._model, self._block, self._gather, self._limit = model, block, gather, limit
        self._rule = ChunkRule(model.manifest.input, None, allow_nonfinite)
        self._frames = frame_rules(model.manifest)
        self._lane = model.backend.lane(block, slots)
        self._slots: dict[Key, _Slot] = {}
        self._free = list(range(slots))[::-1]
        self._stepping = threading.RLock()  # the lane and its state
        self._changed = threading.Condition()  # the slots and what waits in them

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stepping, self._changed:
            self._free += [slot.row for slot in self._slots.values()]
            self._slots.clear()

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
        return len(self._slots) + len(self._free)

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
        state = None if snapshot is None else self._decode(snapshot)
        with self._stepping, self._changed:
            if key in self._slots:
                raise UsageError(f"there is already a stream {key!r}; close it first")
            if not self._free:
                raise PoolFullError(
                    f"all {self.slots} slots are taken; close a stream, or open a larger pool"
                )
            slot = _Slot(self._free.pop())
            self._fill(slot, state)
            self._slots[key] = slot
            self._note(slot)

    def close(self, key: Key) -> None:
        """Forget a stream at once, and free its slot; :meth:`flush` ends one properly.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._changed:
            self._free.append(self._slot(key).row)
            del self._slots[key]

    def reset(self, key: Key) -> None:
        """Make a stream as new, at item 0; what waits is dropped.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._changed:
            self._fill(self._slot(key), None)

    def snapshot(self, key: Key, extra: dict[str, str] | None = None) -> bytes:
        """A stream as bytes, the same as of a :class:`Stream` at this item; see :meth:`open` and
        :meth:`Model.resume`.

        Raises:
            UsageError: there is no stream of this key.
            StreamEndedError: it is being flushed.
        """
        from streamssm.snapshot import Snapshot, encode

        with self._stepping, self._changed:
            slot = self._slot(key)
            self._require_open(key, slot)
            states = tuple(state[slot.row : slot.row + 1].copy() for state in self._lane.state)
            spec = self._model.manifest.input
            none = np.empty((0, *spec.shape), spec.dtype)
            pending = np.concatenate([none, *slot.waiting])[None]
            state = StreamState(states, pending, slot.position, ended=False)
        allow = self._rule.allow_nonfinite
        return encode(self._model, Snapshot(state, self._block, None, allow, dict(extra or {})))

    def pause(self, key: Key) -> None:
        """Leave a stream out of steps until :meth:`resume`; it may still be pushed.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._changed:
            self._slot(key).paused = True

    def resume(self, key: Key) -> None:
        """End a pause.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._changed:
            slot = self._slot(key)
            slot.paused = False
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
        items = self._rule.accept(chunk)[0].copy()
        with self._changed:
            slot = self._slot(key)
            self._require_open(key, slot)
            if slot.items + len(items) > self._limit:
                raise QueueFullError(
                    f"stream {key!r} has {slot.items} items waiting and was given {len(items)}, its limit is "
                    f"{self._limit}; step the pool, drop items, or raise limit"
                )
            before = slot.items >= self._block
            slot.waiting.append(items)
            slot.items += len(items)
            slot.position += len(items)
            if not before:
                self._note(slot)

    def flush(self, key: Key) -> None:
        """End a stream: later steps run what waits, release the look-ahead and close it. The last
        result of the stream, which may be empty, comes when ``key in pool`` turns false.

        Raises:
            UsageError: there is no stream of this key.
        """
        with self._stepping, self._changed:
            slot = self._slot(key)
            if slot.ending:
                return
            manifest = self._model.manifest
            hop, pending = manifest.input.hop, slot.items
            tail = -(-(pending + manifest.lookahead) // hop) * hop if slot.position else 0
            slot.waiting.append(np.zeros((tail - pending, *manifest.input.shape), self._rule.dtype))
            slot.items, slot.ending = tail, True
            self._note(slot)

    def ready(self) -> int:
        """Streams that the next step would run."""
        with self._changed:
            return sum(self._runs(slot) for slot in self._slots.values())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a step is worth its while: every open stream is ready, or one has been for
        ``gather`` seconds. False if nothing is ready after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                ready = [slot for slot in self._slots.values() if self._runs(slot)]
                active = sum(not slot.paused for slot in self._slots.values())
                due = min((slot.since + self._gather for slot in ready), default=None)
                if due is not None and (len(ready) == active or due <= now):
                    return True
                ends = [at for at in (due, deadline) if at is not None]
                if deadline is not None and deadline <= now:
                    return bool(ready)
                self._changed.wait(min(ends) - now if ends else None)

    def step(self) -> list[tuple[Key, Result]]:
        """Run one block of every stream that has one; the results by key, empty ones included.

        Streams that are being flushed run their last items too. Does not wait; see :meth:`wait`.

        Raises:
            BackendError: the run failed; every stream is as it was.
        """
        with self._stepping:
            with self._changed:
                running = [entry for entry in self._slots.items() if self._runs(entry[1])]
            whole = [entry for entry in running if entry[1].items >= self._block]
            last = [entry for entry in running if entry[1].items < self._block]
            return (self._run_whole(whole) if whole else []) + self._run_last(last)

    def _run_whole(self, ran: list[tuple[Key, _Slot]]) -> list[tuple[Key, Result]]:
        """One block of these streams."""
        active = np.zeros(len(self._lane.x), np.bool_)
        with self._changed:
            for _, slot in ran:
                slot.copy_to(self._lane.x[slot.row])
                active[slot.row] = True
        try:
            self._lane.step_rows(active)
        except BaseException:
            self._lane.x[active] = 0  # or what the graph cannot run would be in the way of every stream
            raise
        return self._collect(ran, self._lane.y, self._block)

    def _run_last(self, ending: list[tuple[Key, _Slot]]) -> list[tuple[Key, Result]]:
        """What is left of streams that are flushed, less than a block; then their slots are free."""
        results = []
        ending = sorted(ending, key=lambda entry: entry[1].items)
        for items, group in itertools.groupby(ending, key=lambda entry: entry[1].items):
            ran = list(group)
            results += self._collect(ran, self._short_outputs(items, ran), items)
            with self._changed:
                self._free += [self._slots.pop(key).row for key, _ in ran]
        return results

    def _short_outputs(self, items: int, ran: list[tuple[Key, _Slot]]) -> tuple[Array, ...]:
        if not items:
            return tuple(y[:, :0] for y in self._lane.y)
        x = np.zeros((len(self._lane.x), items, *self._lane.x.shape[2:]), self._lane.x.dtype)
        with self._changed:
            for _, slot in ran:
                slot.copy_to(x[slot.row])
        return self._lane.try_short(x)

    def _collect(
        self, ran: list[tuple[Key, _Slot]], outputs: tuple[Array, ...], items: int
    ) -> list[tuple[Key, Result]]:
        results = []
        with self._changed:
            for key, slot in ran:
                rows = (y[slot.row] for y in outputs)
                parts = [self._new(rule, slot, y) for rule, y in zip(self._frames, rows, strict=True)]
                slot.drop(items)
                self._note(slot)
                results.append((key, self._present(parts)))
        return results

    @staticmethod
    def _new(rule: FrameRule, slot: _Slot, y: Array) -> Array:
        """The frames that the stream returns: no warm-up, none that stem from padding alone."""
        part = y[-rule.cursor(slot.done) :]
        if slot.ending:
            part = part[: rule.total(slot.position) - rule.returned(slot.done)]
        return part.copy()

    def _present(self, parts: list[Array]) -> Result:
        if len(parts) == 1:
            return parts[0]
        return {o.name: part for o, part in zip(self._model.manifest.outputs, parts, strict=True)}

    # Slots.

    def _slot(self, key: Key) -> _Slot:
        slot = self._slots.get(key)
        if slot is None:
            raise UsageError(f"there is no stream {key!r} in the pool; open it first")
        return slot

    @staticmethod
    def _require_open(key: Key, slot: _Slot) -> None:
        if slot.ending:
            raise StreamEndedError(f"stream {key!r} is being flushed; step the pool, then open it anew")

    def _runs(self, slot: _Slot) -> bool:
        return not slot.paused and (slot.ending or slot.items >= self._block)

    def _note(self, slot: _Slot) -> None:
        """A stream may have become ready now."""
        if self._runs(slot):
            slot.since = time.monotonic()
            self._changed.notify_all()

    def _decode(self, snapshot: bytes) -> StreamState:
        from streamssm.snapshot import decode

        saved = decode(self._model, snapshot)
        if saved.batch is not None or saved.state.ended:
            what = "that has ended" if saved.batch is None else f"of {saved.batch} sequences"
            raise UsageError(f"the snapshot is of a stream {what}; a slot takes one sequence that goes on")
        return saved.state

    def _fill(self, slot: _Slot, saved: StreamState | None) -> None:
        """Set a slot to a state, or to item 0."""
        slot.waiting.clear()
        slot.items = slot.position = slot.done = 0
        slot.ending = False
        for index, state in enumerate(self._lane.state):
            state[slot.row] = 0 if saved is None else saved.states[index][0]
        if saved is not None:
            slot.waiting.append(saved.pending[0].copy())
            slot.items, slot.position = len(saved.pending[0]), saved.position
            slot.done = slot.position - slot.items
