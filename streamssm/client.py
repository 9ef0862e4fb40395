"""A thin client of ``streamssm serve``.

    with streamssm.connect("ws://localhost:8765", model="vad") as stream:
        for chunk in chunks:  # float32 at 16 kHz, or at rate=
            for row in stream.send(chunk):
                print(row)
        print(stream.flush())

:meth:`Client.send` returns the rows that are there by now. An error of the server is raised, as the class of
:mod:`streamssm.errors` that it names, by the call during which it arrives.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack
from importlib import import_module
from typing import Any, Self, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import numpy as np
import numpy.typing as npt

from streamssm import errors
from streamssm.errors import InputError, PoolFullError, ServerError, StreamSSMError, UsageError

Array = npt.NDArray[Any]
Row = dict[str, Any]

_PATH = "/v1/stream"
_TEXT = 1 << 17  # bytes of numbers that a server takes in a message
_TOKEN = 21  # characters of the longest one, with its comma
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_KINDS: dict[str, np.dtype[Any]] = {"f32le": np.dtype("<f4"), "s16le": np.dtype("<i2")}


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
    library, address = _library("websockets.sync.client"), _address(url, asked)
    options = _options(token, timeout, ssl)
    stack = ExitStack()
    try:
        socket = stack.enter_context(library.connect(address, **options))
    except Exception as error:
        raise _unreachable(url, error) from error
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
    library, address = _library("websockets.asyncio.client"), _address(url, asked)
    options = _options(token, timeout, ssl)
    stack = AsyncExitStack()
    try:
        socket = await stack.enter_async_context(library.connect(address, **options))
    except Exception as error:
        raise _unreachable(url, error) from error
    client = AsyncClient(socket, encoding, channels, timeout, stack.aclose)
    try:
        await client._until("ready")
    except BaseException:
        await client.close()
        raise
    return client


class _Talk:
    """What both clients share: arrays to messages, and messages to rows and answers."""

    def __init__(
        self, socket: Any, encoding: str, channels: int | None, timeout: float, leave: Callable[[], Any]
    ):
        self.ready: Row = {}  #: what the server said when the stream was opened
        self.stats: Row = {}  #: what it said last, where stats were asked for
        self._channels = channels
        self._socket, self._timeout, self._leave = socket, timeout, leave
        self._kind: np.dtype[Any] = _KINDS[encoding]
        self._rows: list[Row] = []
        self._fault: StreamSSMError | None = None

    def _messages(self, x: Array | bytes | Iterable[Any]) -> list[bytes | str]:
        """A chunk as messages that the server takes."""
        most = int(self.ready.get("max_message", 1 << 20))
        spec = self.ready["input"]
        if spec["kind"] == "tokens":
            tokens, size = np.asarray(x).tolist(), max(1, min(most - 64, _TEXT) // _TOKEN)
            parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
            return [_text({"type": "input", "x": part}) for part in parts]
        data = x if isinstance(x, bytes) else self._typed(x).tobytes()
        frame = self._kind.itemsize * (self._channels or math.prod(spec["shape"]))
        size = max(frame, most - most % frame)
        return [data[at : at + size] for at in range(0, len(data), size)]

    def _typed(self, x: Any) -> Array:
        array = np.asarray(x, None if isinstance(x, np.ndarray) else self._kind)
        if array.dtype.newbyteorder("=") != self._kind.newbyteorder("="):
            raise InputError(
                f"the chunk is {array.dtype}, the stream sends {self._kind.name}; convert it first"
            )
        return np.ascontiguousarray(array, self._kind)

    def _take(self, data: str | bytes) -> Row:
        """Sort a message: rows are kept; what may be an answer is returned."""
        if isinstance(data, bytes):
            return {"type": "binary", "data": data}
        message: Row = msgspec.json.decode(data)
        kind = message.pop("type", None)
        if kind == "row":
            self._rows.append(message)
        elif kind == "stats":
            self.stats = message
        elif kind == "error":
            self._fault = _known(message)
            if not message.get("fatal"):
                raise self._fault
        elif kind == "ready":
            self.ready = message
        return {"type": kind, **message}

    def arrived(self) -> list[Row]:
        """Rows that have arrived and were not yet returned, without looking for more: after a snapshot those
        of the items before it, after an error those before that."""
        rows, self._rows = self._rows, []
        return rows

    def _answer(self, data: str | bytes | None, kind: str) -> Row | None:
        """The message, if it is the answer that is waited for."""
        if data is None:
            raise ServerError(f"the server gave no {kind!r} within {self._timeout:g} s")
        message = self._take(data)
        return message if message["type"] == kind else None

    def _lost(self, error: Exception) -> StreamSSMError:
        """What a lost connection means."""
        if self._fault is not None:
            return self._fault
        return ServerError(f"the server ended the connection: {error}")


class Client(_Talk):
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
        self._put(_text({"type": "resume"}))
        self._put(snapshot)
        return int(self._until("resumed")["item"])

    def close(self) -> None:
        """Close the connection; the server forgets the stream."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: str, answer: str) -> Row:
        self._put(_text({"type": command}))
        return self._until(answer)

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
        try:
            while self._fault is None:
                self._take(self._socket.recv(0.1))
        except Exception:
            return self._lost(error)
        return self._lost(error)


class AsyncClient(_Talk):
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
        await self._put(_text({"type": "resume"}))
        await self._put(snapshot)
        return int((await self._until("resumed"))["item"])

    async def close(self) -> None:
        """Close the connection."""
        await self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, command: str, answer: str) -> Row:
        await self._put(_text({"type": command}))
        return await self._until(answer)

    async def _until(self, answer: str) -> Row:
        while True:
            if (message := self._answer(await self._get(self._timeout), answer)) is not None:
                return message

    async def _put(self, message: bytes | str) -> None:
        try:
            await self._socket.send(message)
        except Exception as error:
            raise self._lost(error) from error

    async def _get(self, timeout: float) -> str | bytes | None:
        try:
            async with asyncio.timeout(max(timeout, 1e-3)):
                data: str | bytes = await self._socket.recv()
        except TimeoutError:
            return None
        except Exception as error:
            raise self._lost(error) from error
        return data


def _address(url: str, asked: Mapping[str, Any]) -> str:
    """The websocket's address with the query."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise UsageError(f"{url!r} is no address of a server; write ws://localhost:8765 or wss://...")
    if asked["encoding"] not in _KINDS:
        raise UsageError(f"encoding = {asked['encoding']!r} is none of {', '.join(_KINDS)}")
    query = dict(parse_qsl(parts.query)) | {name: value for name, value in asked.items() if value is not None}
    path = parts.path if parts.path.strip("/") else _PATH
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, urlencode(query), ""))


def _options(token: str | None, timeout: float, ssl: Any) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # rows that nobody takes would stop the server from reading: they wait here instead
    return {
        **({} if ssl is None else {"ssl": ssl}),
        "additional_headers": headers,
        "open_timeout": timeout,
        "close_timeout": 2,
        "compression": None,
        "max_size": None,
        "max_queue": None,
        "ping_interval": 20,
        "ping_timeout": 60,
    }


def _unreachable(url: str, error: Exception) -> StreamSSMError:
    """What a failed handshake means."""
    response = getattr(error, "response", None)
    if response is None:
        return ServerError(f"{url} cannot be reached: {error}; is 'streamssm serve' running there?")
    try:
        said = msgspec.json.decode(bytes(response.body or b""))
    except msgspec.MsgspecError:
        said = {}
    message = said.get("message") if isinstance(said, dict) else None
    if response.status_code == 503:
        return PoolFullError(f"{url} is full: {message}")
    if message is None:
        return ServerError(f"{url} answered {response.status_code}; is it 'streamssm serve'?")
    return _known({"error": said.get("error"), "message": f"{url} refused the stream: {message}"})


def _known(message: Row) -> StreamSSMError:
    """An error of the server as one of ours."""
    kind: Any = getattr(errors, str(message.get("error")), None)
    known = isinstance(kind, type) and issubclass(kind, StreamSSMError)
    return cast(StreamSSMError, (kind if known else ServerError)(str(message.get("message"))))


def _text(message: Row) -> str:
    return msgspec.json.encode(message).decode()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ServerError("a client needs websockets; pip install 'streamssm[live]'") from error
