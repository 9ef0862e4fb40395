"""Protocol 1 (docs/serve.md) from the client's side: the address, the messages both ways, the errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from ssl import SSLCertVerificationError, SSLError
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import numpy as np
import numpy.typing as npt

from streamssm import errors
from streamssm.errors import InputError, PoolFullError, ServerError, SnapshotError, StreamSSMError, UsageError

Array = npt.NDArray[Any]
Row = dict[str, Any]

_PATH = "/v1/stream"
_TEXT = 1 << 17  # bytes of numbers that a server takes in a message
_TOKEN = 21  # characters of the longest one, with its comma
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_KINDS: dict[str, np.dtype[Any]] = {"f32le": np.dtype("<f4"), "s16le": np.dtype("<i2")}


class Talk:
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
        self._fault: StreamSSMError | None = None  # what ended the stream
        self._pings = 0

    def _fence(self) -> tuple[str, int]:
        """A message that is answered when all before it was dealt with, and the answer's id.

        A command follows when this is answered. So an error that comes before is of what was sent earlier,
        and the command is not sent; one that comes after is the command's own, which then has no other
        answer; and an answer that an earlier call did not wait for is passed over here.
        """
        self._pings += 1
        return text({"type": "ping", "id": self._pings}), self._pings

    def _messages(self, x: Array | bytes | Iterable[Any]) -> list[bytes | str]:
        """A chunk as messages that the server takes."""
        most = int(self.ready.get("max_message", 1 << 20)) - 1  # older servers refuse all of it
        spec = self.ready["input"]
        if spec["kind"] == "tokens":
            tokens, size = _array(x, None).tolist(), max(1, min(most - 64, _TEXT) // _TOKEN)
            parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
            return [text({"type": "input", "x": part}) for part in parts]
        columns = self._channels or math.prod(spec["shape"])
        data = x if isinstance(x, bytes) else self._typed(x, columns).tobytes()
        frame = self._kind.itemsize * columns
        size = max(frame, most - most % frame)
        return [data[at : at + size] for at in range(0, len(data), size)]

    def _typed(self, x: Any, columns: int) -> Array:
        """The frames of a chunk, ``[n, columns]`` or interleaved, as they are sent."""
        array = _array(x, None if isinstance(x, np.ndarray) else self._kind)
        if self._kind.kind == "i" and array.size and (given := np.asarray(x)).dtype.kind == "f":
            array = given  # numpy would cut the fractions of a list off
        if array.ndim > 1 and math.prod(array.shape[1:]) != columns:
            raise InputError(
                f"the chunk has shape {list(array.shape)}, the stream takes frames [n, {columns}]; pick or "
                "mix its columns, or open the stream with channels="
            )
        if array.dtype.newbyteorder("=") != self._kind.newbyteorder("="):
            raise InputError(
                f"the chunk is {array.dtype}, the stream sends {self._kind.name}; convert it first"
            )
        return np.ascontiguousarray(array, self._kind)

    def _saved(self, snapshot: Any) -> bytes:
        """A snapshot, before the server is told of it: after ``resume`` it takes whatever comes for one.

        Raises:
            SnapshotError: it is no bytes, or more than the server takes.
        """
        if not isinstance(snapshot, bytes | bytearray | memoryview):
            raise SnapshotError(f"the snapshot is a {type(snapshot).__name__}; give the bytes of snapshot()")
        data, most = bytes(snapshot), int(self.ready.get("max_message", 1 << 20))
        if len(data) > most:
            raise SnapshotError(
                f"the snapshot is of {len(data)} bytes, this server takes {most}; is it of this model?"
            )
        return data

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
            fault = _known(message)
            if not message.get("fatal"):
                raise fault
            self._fault = fault
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
            late = f"given no {kind!r}" if kind != "pong" else "not yet dealt with what was sent before"
            raise ServerError(f"the server has {late} within {self._timeout:g} s; raise timeout=")
        message = self._take(data)
        return message if message["type"] == kind else None

    def _lost(self, error: Exception, told: StreamSSMError | None) -> StreamSSMError:
        """What a lost connection means; ``told`` is an error that had arrived and was not yet raised."""
        return self._fault or told or ServerError(f"the server ended the connection: {error}")


def _array(x: Any, dtype: Any) -> Array:
    """A chunk as an array.

    Raises:
        InputError: it is none, or no sequence of items.
    """
    try:
        array = np.asarray(x, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the chunk is no array of numbers: {error}") from error
    if not array.ndim:
        raise InputError(f"the chunk is {x!r:.40}, not a sequence of items; send an array, even of one")
    return array


def stream_address(url: str, asked: Mapping[str, Any]) -> str:
    """The websocket's address with the query."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise UsageError(f"{url!r} is no address of a server; write ws://localhost:8765 or wss://...")
    if asked["encoding"] not in _KINDS:
        raise UsageError(f"encoding = {asked['encoding']!r} is none of {', '.join(_KINDS)}")
    query = dict(parse_qsl(parts.query)) | {name: value for name, value in asked.items() if value is not None}
    path = parts.path if parts.path.strip("/") else _PATH
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, urlencode(query), ""))


def websocket_options(token: str | None, timeout: float, ssl: Any) -> dict[str, Any]:
    """What the websocket is opened with.

    Raises:
        UsageError: a header cannot hold the token, which is not shown.
    """
    token = None if token is None else token.strip()  # a file's ends with a line break
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UsageError("the token holds characters that a header cannot; give the one of --token-file")
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
        "ping_timeout": max(60, timeout),  # the answer comes after what was sent before is dealt with
    }


def unreachable(url: str, error: Exception) -> StreamSSMError:
    """What a failed handshake means."""
    response = getattr(error, "response", None)
    if response is None:
        return ServerError(f"{url} cannot be reached: {error}; {_remedy(error)}")
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


def _remedy(error: Exception) -> str:
    if isinstance(error, SSLCertVerificationError):
        return "give ssl= a context that trusts its certificate"
    if isinstance(error, SSLError):
        return "does it speak TLS? If not, write ws://"
    if not isinstance(error, OSError):  # something was answered, which is no handshake
        return "is it 'streamssm serve'? If it speaks TLS, write wss://"
    return "is 'streamssm serve' running there?"


def _known(message: Row) -> StreamSSMError:
    """An error of the server as one of ours."""
    kind: Any = getattr(errors, str(message.get("error")), None)
    known = isinstance(kind, type) and issubclass(kind, StreamSSMError)
    return cast(StreamSSMError, (kind if known else ServerError)(str(message.get("message"))))


def text(message: Row) -> str:
    """A message of the client."""
    return msgspec.json.encode(message).decode()


def websockets_module(name: str) -> Any:
    """A module of websockets.

    Raises:
        ServerError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ServerError("a client needs websockets; pip install 'streamssm[live]'") from error
