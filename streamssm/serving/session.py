"""One websocket: a stream of the pool, and what its client and the server say to each other.

A reader takes messages, a writer sends what the stream returns. Whoever is done first, or a request from
outside, says how the session ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import WSMessage, WSMsgType, web

from streamssm.errors import InputError, SnapshotError, StreamSSMError, UsageError
from streamssm.serving import PROTOCOL, wire
from streamssm.serving.endings import EOF, GONE, Ending, failed
from streamssm.serving.lateness import Lateness
from streamssm.serving.shown import Shown, emits
from streamssm.serving.wire import SLICE, Asked, Intake, Message, sound

if TYPE_CHECKING:
    from streamssm.aio import AsyncStream
    from streamssm.outputs import Array
    from streamssm.serving.metrics import Metrics
    from streamssm.stream import Result

_EXTRA = "streamssm.serve"
_HEADER = 1 << 17  # bytes of one of a snapshot, states aside: a longer one takes time from others
_STRIKES = 32  # refused messages in a row, after which a client is not understood
_TURN = 16  # frames that are taken before others have their turn
_TOGETHER = 32  # results that are told at a time


class Session:
    """A client and its stream, from ``ready`` to the close frame."""

    def __init__(
        self,
        name: str,
        served: str,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        stream: AsyncStream,
        asked: Asked,
        metrics: Metrics,
    ):
        self.name, self.served, self.model = name, served, stream.model  # served: what clients call the model
        self.heard = time.monotonic()  # since when the client has said nothing; inf while it is worked for
        self.sending: float | None = None  # since when a message has been waiting to be taken
        self._transport = transport
        self._ws, self._stream, self._asked, self._metrics = ws, stream, asked, metrics
        manifest = self.model.manifest
        self._intake = Intake(manifest.input, asked)
        self._emit = emits(self.model, asked)
        self._shown = Shown(manifest, self._emit)
        self._expects_snapshot = False
        self._strikes = self._received = 0
        self._telling = asyncio.Lock()  # what belongs together is not torn apart by an answer
        self._again = asyncio.Event()
        self._stop: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._commands: dict[str, Callable[[wire.Command], Awaitable[Ending | None]]] = {
            "input": self._on_input,
            "flush": self._on_flush,
            "reset": self._on_reset,
            "snapshot": self._on_snapshot,
            "resume": self._on_resume,
            "eof": self._on_eof,
            "ping": self._on_ping,
        }
        self._counts = metrics.of(served)
        self._late = Lateness(self._counts.latency.add)

    @property
    def waiting(self) -> int:
        """Items accepted and not yet run."""
        return max(0, self._stream.position - self._stream.done)

    def stop(self, ending: Ending) -> None:
        """End the session, if it does not already end."""
        if not self._stop.done():
            self._stop.set_result(ending)

    def abort(self, ending: Ending) -> None:
        """Cut the connection of a client that does not even take a close frame."""
        self.stop(ending)
        if (transport := self._transport) is not None:
            transport.abort()

    async def run(self, limits: Message) -> Ending:
        """Talk until the end; returns what it was."""
        await self._send(self._ready() | limits)
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        tasks: list[asyncio.Task[Any]] = [reader, writer]
        if self._asked.stats:
            tasks.append(asyncio.create_task(self._tell_stats()))
        try:
            await asyncio.wait([*tasks, self._stop], return_when=asyncio.FIRST_COMPLETED)
            ending = self._ending(tasks)
            reader.cancel()
            tasks.append(last := asyncio.create_task(self._end(ending)))
            if ending.flush:  # without the writer what is left would never be sent
                await asyncio.wait([writer, last], return_when=asyncio.FIRST_COMPLETED)
            return GONE if ending.flush and writer.done() and not last.done() else await last
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ending(self, tasks: list[asyncio.Task[Any]]) -> Ending:
        if self._stop.done():
            return self._stop.result()
        done = next(task for task in tasks if task.done())
        error = done.exception()
        if error is None:
            return done.result() or GONE
        if isinstance(error, ConnectionError):
            return GONE
        return failed(error)

    async def _end(self, ending: Ending) -> Ending:
        """Say what is left to say, and close."""
        if ending.code is None:
            return ending
        try:
            if ending.flush:
                ending = await self._flushed(ending)
            if ending.error is not None:
                self._metrics.errors[type(ending.error).__name__] += 1
                await self._send(wire.error_message(ending.error, fatal=True))
            closed = self._ws.close(code=ending.code or 1000, message=ending.text.encode())
            await self._taken(closed)
        except ConnectionError:
            return GONE
        return ending

    async def _flushed(self, ending: Ending) -> Ending:
        try:
            await self._flush()
        except StreamSSMError as error:
            return failed(error)
        return ending

    # From the client.

    async def _read(self) -> Ending:
        while True:
            message = await self._next()
            try:
                if message.type is WSMsgType.BINARY:
                    await self._on_binary(message.data)
                elif message.type is WSMsgType.TEXT:
                    if (ending := await self._on_text(message.data)) is not None:
                        return ending
                else:
                    return self._closed(message)
                self._strikes = 0
            except StreamSSMError as error:
                await self._complain(error)

    async def _next(self) -> WSMessage:
        """The next message; control frames are none."""
        self.heard = time.monotonic()
        while True:
            message = await self._ws.receive()
            self._received += 1
            if not self._received % _TURN:  # while more are here already, nothing else makes this task wait
                await asyncio.sleep(0)
            if message.type is WSMsgType.PING:
                await self._taken(self._ws.pong(message.data))
            elif message.type is not WSMsgType.PONG:
                self.heard = math.inf
                return message

    @staticmethod
    def _closed(message: Any) -> Ending:
        if message.type is WSMsgType.ERROR and getattr(message.data, "code", None) == 1009:
            return Ending(None, "message too big")
        return GONE if message.type is not WSMsgType.ERROR else Ending(None, "protocol error")

    async def _complain(self, error: StreamSSMError) -> None:
        """Tell the client; give up on one that is never understood, and on a stream that has failed."""
        self._strikes += 1
        if self._stream.error is not None or self._strikes >= _STRIKES:
            raise error
        self._metrics.errors[type(error).__name__] += 1
        await self._send(wire.error_message(error, fatal=False))

    async def _on_binary(self, data: bytes) -> None:
        if self._expects_snapshot:
            self._expects_snapshot = False
            await self._resume(data)
        else:
            await self._push(self._intake.binary(data))

    async def _on_text(self, text: str) -> Ending | None:
        if self._expects_snapshot:
            self._expects_snapshot = False
            raise InputError("after resume the snapshot is due, as one binary message; text came instead")
        command = wire.parse_command(text)
        handler = self._commands.get(command.type)
        if handler is None:
            raise InputError(f"type {command.type!r} is none of {', '.join(sorted(self._commands))}")
        return await handler(command)

    async def _on_input(self, command: wire.Command) -> None:
        await self._push(self._intake.values(command.x))

    async def _on_flush(self, _: wire.Command) -> None:
        await self._flush()

    async def _on_eof(self, _: wire.Command) -> Ending:
        return EOF

    async def _on_ping(self, command: wire.Command) -> None:
        await self._send({"type": "pong", "id": command.id})

    async def _on_reset(self, _: wire.Command) -> None:
        await self._stream.reset()
        async with self._telling:
            self._start_anew()
            await self._send({"type": "reset"})

    async def _on_snapshot(self, _: wire.Command) -> None:
        if not self._intake.exact:
            raise UsageError("a stream that is resampled cannot be saved; open it at the model's own rate")
        async with self._stream.held():
            await self._stream.caught_up()
            saved = await self._stream.snapshot({_EXTRA: self._shown.place()})
            async with self._telling:  # rows before it are of items before it
                await self._send({"type": "snapshot", "item": self._stream.position, "bytes": len(saved)})
                await self._send_bytes(saved)

    async def _on_resume(self, _: wire.Command) -> None:
        self._expects_snapshot = True  # even where it will be refused: it must not be taken for input

    async def _resume(self, data: bytes) -> None:
        from streamssm.snapshot import decode

        if not self._intake.exact:
            raise UsageError("a stream that is resampled cannot be resumed; open it at the model's own rate")
        if int.from_bytes(data[:8], "little") > _HEADER + 1024 * len(self.model.manifest.states):
            raise SnapshotError("the snapshot has a header longer than any that is saved here; save it again")
        saved = (await asyncio.to_thread(decode, self.model, data)).extra.get(_EXTRA)
        shown = Shown.resumed(self.model.manifest, self._emit, saved)  # or else the stream is as it was
        async with self._stream.held():
            await self._stream.restore(data)
            async with self._telling:
                self._start_anew()
                self._shown = shown
                await self._send({"type": "resumed", "item": self._stream.position})

    def _start_anew(self) -> None:
        self._shown = Shown(self.model.manifest, self._emit)
        self._intake = Intake(self.model.manifest.input, self._asked)
        self._late.forget()
        self._again.set()

    async def _push(self, frames: Array) -> None:
        at = time.perf_counter()
        if self._intake.exact and len(frames) <= SLICE:  # the pool itself takes it whole or not at all
            await self._push_items(self._intake.as_items(frames), at)
            return
        for items in self._intake.items(sound(frames)):
            await self._push_items(items, at)

    async def _push_items(self, items: Array, at: float) -> None:
        if not len(items):
            return
        stream, count = self._stream, len(items)
        completes = (stream.position - stream.done) % stream.block + count >= stream.block
        if completes:
            self._late.expect(stream.position + count, at)
        try:
            await stream.push(items)
        except InputError:
            if completes:
                self._late.take_back()
            raise
        self._counts.items += len(items)

    async def _flush(self) -> None:
        """End the sequence and send what it leaves."""
        if self._stream.error is not None:
            raise self._stream.error
        if not self._stream.ended:
            tail = self._intake.tail()
            if len(tail):
                await self._push_items(tail, time.perf_counter())
            await self._stream.flush()
            await self._stream.caught_up()
            async with self._telling:
                await self._send_rows(self._shown.flush())
        async with self._telling:
            await self._send({"type": "flushed", "items": self._stream.position})

    # To the client.

    def _ready(self) -> Message:
        described = wire.describe_model(self.model, self._stream.block)
        kept = ("rate", "hop", "block", "lookahead", "input", "outputs")
        return {
            "type": "ready",
            "protocol": PROTOCOL,
            "session": self.name,
            "model": self.served,
            **{key: described[key] for key in kept},
            "events": self._emit == "events",
            "emit": self._emit,
        }

    async def _write(self) -> None:
        """Send results, sequence after sequence, until somebody stops it."""
        while True:
            async for result in self._stream:
                async with self._telling:
                    await self._emit_results(result)
            self._again.clear()
            if self._stream.ended:
                await self._again.wait()

    async def _emit_results(self, result: Result) -> None:
        """Tell a result and those that are there beside it: their levels are one message."""
        rows: list[Message] = []
        start, levels = self._shown.frames, [self._use(result, rows)]
        while self._stream.unread and len(levels) < _TOGETHER:
            levels.append(self._use(await anext(self._stream), rows))
        values = np.concatenate(levels)
        if self._asked.levels and len(values):
            await self._send(self._shown.levels(values, start))
        await self._send_rows(rows)

    def _use(self, result: Result, rows: list[Message]) -> Array:
        self._late.note(self._stream.read)
        return self._shown.use(result, rows)

    async def _tell_stats(self) -> None:
        while True:
            await asyncio.sleep(1)
            p50, p99 = self._late.quantile(0.5), self._late.quantile(0.99)
            position = self._stream.position
            await self._send(
                {"type": "stats", "items": position, "p50_ms": p50, "p99_ms": p99, "queue": self.waiting}
            )

    async def _send_rows(self, rows: list[Message]) -> None:
        for row in rows:
            await self._send({"type": "row", **row})
        if rows:
            self._counts.rows += len(rows)

    async def _send(self, message: Message) -> None:
        await self._taken(self._ws.send_str(wire.encode(message)))

    async def _send_bytes(self, data: bytes) -> None:
        await self._taken(self._ws.send_bytes(data))

    async def _taken(self, sent: Awaitable[object]) -> None:
        """Send, and let it be known for how long the client has not been taking what it is sent."""
        mine = self.sending is None
        if mine:
            self.sending = time.monotonic()
        try:
            await sent
        finally:
            if mine:
                self.sending = None
