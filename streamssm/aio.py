"""Streams for asyncio: a pool whose steps run in a thread of their own.

    async with model.async_pool(slots=64, gather=0.005) as pool:
        stream = await pool.open("mic-17")
        await stream.push(samples)  # waits while too much is waiting
        async for speech in stream: ...  # until the stream is flushed

The event loop never waits for the model, and a failure of the model ends the stream that it befell, no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from streamssm.errors import PoolFullError, QueueFullError, StreamEndedError, UsageError
from streamssm.stepping import Stepper

if TYPE_CHECKING:
    from streamssm.chunks import ChunkRule
    from streamssm.model import Model
    from streamssm.pool import Array, Key, Pool
    from streamssm.stepping import Step
    from streamssm.stream import Result

_LEAST_UNREAD = 16  # results


class AsyncPool:
    """Streams of one model by key, made by :meth:`Model.async_pool`; to be entered with ``async with``.

    It belongs to the event loop in which it was entered. ``failed`` is what ended the stepping, if
    anything did.
    """

    def __init__(
        self, pool: Pool, rule: ChunkRule, limit: int, on_step: Callable[[int, float], None] | None = None
    ):
        """Use :meth:`Model.async_pool`, which checks the arguments."""
        self.model, self.slots, self.block = pool.model, pool.slots, pool.block
        self.rule, self.limit = rule, limit
        self.failed: BaseException | None = None
        self._pool, self._on_step = pool, on_step
        self._streams: dict[Key, AsyncStream] = {}
        self._stepper: Stepper | None = None

    async def __aenter__(self) -> Self:
        self._stepper = Stepper(self._pool, self._deliver, self._die)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stepper is not None:
            await self._stepper.stop()
        for stream in self._streams.values():
            stream._end()
        self._streams.clear()
        self._pool.__exit__(None, None, None)

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, key: Key) -> bool:
        return key in self._streams

    @property
    def free(self) -> int:
        """Streams that can still be opened."""
        return self.slots - len(self._streams)

    @property
    def stepper(self) -> Stepper:
        """What steps the pool.

        Raises:
            UsageError: the pool was not entered, or was left.
        """
        if self._stepper is None or not self._stepper.running:
            raise UsageError("the pool is not open; use it within 'async with'")
        return self._stepper

    async def open(self, key: Key, snapshot: bytes | None = None) -> AsyncStream:
        """Give a stream a slot, at item 0 or where a snapshot left off.

        Raises:
            PoolFullError: no slot is free; nothing was opened.
            UsageError: there is a stream of this key, or the pool was not entered.
            SnapshotError: the snapshot is not one of a single stream of this model that goes on.
        """
        stepper = self.stepper
        if key in self._streams:
            raise UsageError(f"there is already a stream {key!r}; close it first")
        if not self.free:
            raise PoolFullError(f"all {self.slots} slots are taken; close a stream, or open a larger pool")
        stream = self._streams[key] = AsyncStream(self, self._pool, key)
        try:
            await stepper.call(stepper.open, key, snapshot)
        except BaseException:  # also if the waiting was cancelled: the slot is freed after it was taken
            self.forget(key)
            raise
        stream._begin()
        if snapshot is not None:
            await stepper.call(stepper.hold, key, False)
        return stream

    def forget(self, key: Key) -> asyncio.Future[None] | None:
        """Free the slot of a stream, soon; what frees it, to be waited for."""
        known = self._streams.pop(key, None) is not None
        if not known or self._stepper is None or not self._stepper.running:
            return None
        return self._stepper.submit(self._stepper.forget, key)

    def _deliver(self, steps: list[Step]) -> None:
        for ran, ended, took in steps:
            for key, result in ran:
                stream = self._streams.get(key)
                if stream is None:
                    continue
                if isinstance(result, Exception):
                    stream._end(result)
                else:
                    stream._take(result, key in ended)
            if self._on_step is not None:
                self._on_step(len(ran), took)

    def _die(self, error: BaseException) -> None:
        self.failed = error
        for stream in self._streams.values():
            stream._end(error)


class AsyncStream:
    """A stream of an :class:`AsyncPool`, made by :meth:`AsyncPool.open`.

    One task pushes; the same or another one reads the results, ``async for result in stream``, until the
    stream is flushed or closed. ``position`` counts the items accepted, ``done`` those that were run,
    ``read`` those whose results were read. ``error`` is what the model failed with, if it did.
    """

    def __init__(self, owner: AsyncPool, pool: Pool, key: Key):
        """Use :meth:`AsyncPool.open`."""
        self.key = key
        self.position = self.done = self.read = 0
        self.error: BaseException | None = None
        self._owner, self._pool = owner, pool
        self._results: deque[tuple[Result, int]] = deque()  # and the items done by then
        self._most = max(_LEAST_UNREAD, 2 * owner.limit // owner.block)
        self._reader: asyncio.Task[Any] | None = None
        self._holds = 0
        self._ended = self._closed = False
        self._arrived, self._moved = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def model(self) -> Model:
        """The model that this stream runs."""
        return self._owner.model

    @property
    def block(self) -> int:
        """Input items per backend call."""
        return self._owner.block

    @property
    def unread(self) -> int:
        """Results that wait to be read."""
        return len(self._results)

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed, failed or was closed."""
        return self._ended

    async def push(self, chunk: Array) -> None:
        """Give the stream more input, of any length; waits while too much is waiting to be run or read.

        Raises:
            InputError: the chunk does not fit the model; nothing of it was taken.
            StreamEndedError: the stream was flushed or closed; :meth:`reset` it.
            QueueFullError: too many results are unread, and the task that reads is the one that pushes.
        """
        for piece in self._pieces(chunk):
            await self._make_room()
            while not self._push(piece):
                await self._change()

    def __aiter__(self) -> AsyncIterator[Result]:
        return self

    async def __anext__(self) -> Result:
        """The next result; a failure of the model comes after the results before it."""
        self._reader = asyncio.current_task()
        while not self._results:
            if self.error is not None:
                raise self.error
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        result, self.read = self._results.popleft()
        self._moved.set()
        return result

    async def flush(self) -> None:
        """End the stream; when this returns, the last result can be read. Once flushed, it does nothing.

        Raises:
            BackendError: the model failed; the stream is closed.
        """
        if self._ended and self.error is None and not self._closed:
            return
        self._require_open()
        await self._owner.stepper.call(self._pool.flush, self.key)
        while not self._ended:
            await self._change()
        if self.error is not None:
            raise self.error

    async def reset(self) -> None:
        """Make the stream as new, at item 0, also after its end; what waits and what is unread is dropped."""
        await self.restore(None)

    async def restore(self, snapshot: bytes | None) -> None:
        """Go on from a snapshot; what waits and what is unread is dropped. First results may be there at
        once: to prepare for them, restore within :meth:`held`.

        Raises:
            SnapshotError: it is none of a stream of this model that goes on; the stream is as it was.
        """
        self._require_known()
        async with self.held():
            stepper = self._owner.stepper
            await stepper.call(stepper.replace, self.key, snapshot)
            self._results.clear()
            self._ended, self.error = False, None
            self._begin()
            self._moved.set()

    async def snapshot(self, extra: dict[str, str] | None = None) -> bytes:
        """The stream as bytes, as it is now: results may still be unread, see :meth:`held`.

        Raises:
            StreamEndedError: the stream was flushed or closed.
        """
        self._require_open()
        return await self._owner.stepper.beside(self._pool.snapshot, self.key, extra)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """A block in which the stream is not stepped: once :meth:`caught_up`, what was read and what
        :meth:`snapshot` says belong together."""
        stepper = self._owner.stepper
        self._holds += 1
        await stepper.call(stepper.hold, self.key, True)
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds and stepper.running:
                await stepper.call(stepper.hold, self.key, False)

    async def caught_up(self) -> None:
        """Wait until every result that is there was read."""
        while self._results:
            await self._change()

    async def close(self) -> None:
        """Forget the stream at once, and free its slot; unread results are dropped."""
        self._results.clear()
        self._closed = True
        self._end()
        if (freed := self._owner.forget(self.key)) is not None:
            await asyncio.shield(freed)

    def _pieces(self, chunk: Array) -> Iterable[Array]:
        """The chunk, or parts that fit the queue of one that was found to be sound as a whole."""
        self._require_open()
        size = max(self.block, self._owner.limit // 2)
        if getattr(chunk, "shape", ()) and len(chunk) <= size:
            return (chunk,)
        whole = self._owner.rule.accept(chunk)[0]
        return (whole[at : at + size] for at in range(0, len(whole), size))

    def _push(self, piece: Array) -> bool:
        self._require_open()
        try:
            self._pool.push(self.key, piece)
        except QueueFullError:
            return False
        self.position += len(piece)
        return True

    async def _make_room(self) -> None:
        while len(self._results) >= self._most and not self._ended:
            if self._reader in (None, asyncio.current_task()):
                raise QueueFullError(
                    f"{len(self._results)} results of stream {self.key!r} are unread; read them in another "
                    "task, or between two pushes"
                )
            await self._change()

    async def _change(self) -> None:
        """Wait until a step has run, a result was read, or the stream has ended."""
        self._moved.clear()
        await self._moved.wait()

    def _require_known(self) -> None:
        if self._closed:
            raise StreamEndedError(f"stream {self.key!r} was closed; open it anew")

    def _require_open(self) -> None:
        self._require_known()
        if self.error is not None:
            raise self.error
        if self._ended:
            raise StreamEndedError(f"stream {self.key!r} was flushed; reset it to start anew")

    def _begin(self) -> None:
        """Count from where the pool's stream starts."""
        self.position = self._pool.position(self.key)
        self.done = self.read = self.position - self._pool.pending(self.key)

    def _take(self, result: Result, last: bool) -> None:
        self.done = self.position if last else self.done + self.block
        if any(map(len, result.values())) if isinstance(result, dict) else len(result):
            self._results.append((result, self.done))
            self._arrived.set()
        if last:
            self._end()
        self._moved.set()

    def _end(self, error: BaseException | None = None) -> None:
        self._ended, self.error = True, error or self.error
        self._arrived.set()
        self._moved.set()
