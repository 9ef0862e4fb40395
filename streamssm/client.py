"""A thin client of ``streamssm serve``.

    with streamssm.connect("ws://localhost:8765", model="vad") as stream:
        for chunk in chunks:  # float32 at 16 kHz, or at rate=
            for row in stream.send(chunk):
                print(row)
        print(stream.flush())

:meth:`Client.send` returns the rows that are there by now. An error of the server is raised, as the class of
:mod:`streamssm.errors` that it names, by the call during which it arrives. ``flush``, ``reset``, ``snapshot``
and ``resume`` wait until all that was sent before is dealt with: if that raises, they were not carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Self

from streamssm.client_wire import (
    Array,
    Row,
    Talk,
    stream_address,
    text,
    unreachable,
    websocket_options,
    websockets_module,
)
from streamssm.errors import StreamSSMError


def connect(
    url: str,
    model: str | None = None,
    *,
    emit: str | None = None,
    rate: float | None = None,
    channels: int | None = None,
    encoding: str = "f32le",
    token: str | None = None,
    timeout: float = 30.0,
    ssl: Any = None,
) -> Client:
    """Open a stream on a server.

    ``url`` is the server's, such as ``ws://localhost:8765``. ``rate`` and ``channels`` say what is sent,
    where it is not what the model takes; ``encoding`` "s16le" sends int16 arrays as they are. ``timeout`` is
    for how many seconds an answer may take; ``ssl`` is a context for a certificate of your own.

    Raises:
        PoolFullError: every slot of the server is taken.
        ServerError: it cannot be reached, wants a token, or does not serve this model.
        UsageError: the server cannot give what is asked for.
    """
    asked = {"model": model, "emit": emit, "rate": rate, "channels": channels, "encoding": encoding}
    library, address = websockets_module("websockets.sync.client"), stream_address(url, asked)
    options = websocket_options(token, timeout, ssl)
    stack = ExitStack()
    try:
        socket = stack.enter_context(library.connect(address, **options))
    except Exception as error:
        raise unreachable(url, error) from error
    client = Client(socket, encoding, channels, timeout, stack.close)
    try:
        client._until("ready")
    except BaseException:
        client.close()
        raise
    return client


async def aconnect(
    url: str,
    model: str | None = None,
    *,
    encoding: str = "f32le",
    channels: int | None = None,
    token: str | None = None,
    timeout: float = 30.0,
    ssl: Any = None,
    **asked: Any,
) -> AsyncClient:
    """The same for asyncio: ``async with await aconnect(...) as stream``; ``asked`` is emit and rate.

    Raises:
        StreamSSMError: as of :func:`connect`.
    """
    asked |= {"model": model, "channels": channels, "encoding": encoding}
    library, address = websockets_module("websockets.asyncio.client"), stream_address(url, asked)
    options = websocket_options(token, timeout, ssl)
    stack = AsyncExitStack()
    try:
        socket = await stack.enter_async_context(library.connect(address, **options))
    except Exception as error:
        raise unreachable(url, error) from error
    client = AsyncClient(socket, encoding, channels, timeout, stack.aclose)
    try:
        await client._until("ready")
    except BaseException:
        await client.close()
        raise
    return client


class Client(Talk):
    """A stream on a server, made by :func:`streamssm.connect`. It belongs to one thread at a time."""

    def send(self, x: Array | bytes | Iterable[Any]) -> list[Row]:
        """Give the stream more input, of any length; returns the rows that have arrived.

        Raises:
            InputError: the chunk, or an earlier one, does not fit.
            ServerError: the connection is lost.
        """
        for message in self._messages(x):
            self._put(message)
        return self.rows()

    def rows(self, timeout: float = 0.0) -> list[Row]:
        """The rows that have arrived, after waiting up to ``timeout`` seconds for one."""
        while (data := self._get(0.0 if self._rows else timeout)) is not None:
            self._take(data)
        return self.arrived()

    def flush(self) -> list[Row]:
        """End the sequence; returns all rows that are left."""
        self._ask("flush", "flushed")
        return self.arrived()

    def reset(self) -> None:
        """Make the stream as new, at item 0; rows not yet returned are dropped."""
        self._ask("reset", "reset")
        self.arrived()

    def snapshot(self) -> bytes:
        """The stream as bytes, for :meth:`resume` on any server of this model."""
        self._ask("snapshot", "snapshot")
        return bytes(self._until("binary")["data"])

    def resume(self, snapshot: bytes) -> int:
        """Go on from a snapshot; returns the next item to send."""
        data = self._saved(snapshot)
        self._catch_up()
        self._put(text({"type": "resume"}))
        self._put(data)
        return int(self._until("resumed")["item"])

    def close(self) -> None:
        """Close the connection; the server forgets the stream."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: str, answer: str) -> Row:
        self._catch_up()
        self._put(text({"type": command}))
        return self._until(answer)

    def _catch_up(self) -> None:
        """Wait until the server has dealt with all that was sent."""
        message, id_ = self._fence()
        self._put(message)
        while self._until("pong")["id"] != id_:
            pass

    def _until(self, answer: str) -> Row:
        while True:
            if (message := self._answer(self._get(self._timeout), answer)) is not None:
                return message

    def _put(self, message: bytes | str) -> None:
        try:
            self._socket.send(message)
        except Exception as error:
            raise self._closed(error) from error

    def _get(self, timeout: float) -> str | bytes | None:
        try:
            data: str | bytes = self._socket.recv(timeout)
        except TimeoutError:
            return None
        except Exception as error:
            raise self._closed(error) from error
        return data

    def _closed(self, error: Exception) -> StreamSSMError:
        """The reason may lie among what has arrived."""
        told: StreamSSMError | None = None
        while self._fault is None:
            try:
                self._take(self._socket.recv(0.1))
            except StreamSSMError as first:
                told = told or first
            except Exception:  # nothing more
                break
        return self._lost(error, told)


class AsyncClient(Talk):
    """A stream on a server, made by :func:`aconnect`. The methods are those of :class:`Client`."""

    async def send(self, x: Array | bytes | Iterable[Any]) -> list[Row]:
        """Give the stream more input; returns the rows that have arrived."""
        for message in self._messages(x):
            await self._put(message)
        return await self.rows()

    async def rows(self, timeout: float = 0.0) -> list[Row]:
        """The rows that have arrived, after waiting up to ``timeout`` seconds for one."""
        while (data := await self._get(0.0 if self._rows else timeout)) is not None:
            self._take(data)
        return self.arrived()

    async def flush(self) -> list[Row]:
        """End the sequence; returns all rows that are left."""
        await self._ask("flush", "flushed")
        return self.arrived()

    async def reset(self) -> None:
        """Make the stream as new; rows not yet returned are dropped."""
        await self._ask("reset", "reset")
        self.arrived()

    async def snapshot(self) -> bytes:
        """The stream as bytes."""
        await self._ask("snapshot", "snapshot")
        return bytes((await self._until("binary"))["data"])

    async def resume(self, snapshot: bytes) -> int:
        """Go on from a snapshot; returns the next item to send."""
        data = self._saved(snapshot)
        await self._catch_up()
        await self._put(text({"type": "resume"}))
        await self._put(data)
        return int((await self._until("resumed"))["item"])

    async def close(self) -> None:
        """Close the connection."""
        await self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, command: str, answer: str) -> Row:
        await self._catch_up()
        await self._put(text({"type": command}))
        return await self._until(answer)

    async def _catch_up(self) -> None:
        message, id_ = self._fence()
        await self._put(message)
        while (await self._until("pong"))["id"] != id_:
            pass

    async def _until(self, answer: str) -> Row:
        while True:
            if (message := self._answer(await self._get(self._timeout), answer)) is not None:
                return message

    async def _put(self, message: bytes | str) -> None:
        try:
            await self._socket.send(message)
        except Exception as error:
            raise await self._closed(error) from error

    async def _get(self, timeout: float) -> str | bytes | None:
        try:
            async with asyncio.timeout(max(timeout, 1e-3)):
                data: str | bytes = await self._socket.recv()
        except TimeoutError:
            return None
        except Exception as error:
            raise await self._closed(error) from error
        return data

    async def _closed(self, error: Exception) -> StreamSSMError:
        told: StreamSSMError | None = None
        while self._fault is None:
            try:
                async with asyncio.timeout(0.1):
                    self._take(await self._socket.recv())
            except StreamSSMError as first:
                told = told or first
            except Exception:  # nothing more
                break
        return self._lost(error, told)
