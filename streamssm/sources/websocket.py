"""``ws://`` and ``wss://``: samples or rows that a server sends, message by message.

Text messages are JSON; binary ones are frames of ``--input-format``, by default f32le, and JSON if that
is ``json``. A server that closes with code 1000 has said all it had to say: the source ends. Any other
end is a lost connection, which is opened again.
"""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from streamssm.errors import SourceError, UsageError
from streamssm.live.connection import Connection, LostError
from streamssm.live.intake import Intake
from streamssm.live.opening import open_messages
from streamssm.sources.base import Request, Source

_OPEN_TIMEOUT = 10.0  # seconds
_CLOSE_TIMEOUT = 1.0
_SILENCE = 20.0  # seconds without a message before the server is asked whether it is there
_DONE, _TOO_BIG = 1000, 1009  # why a connection was closed
_LATER = (408, 425, 429)  # HTTP refusals that may pass
_DEFAULT = "f32le"


class WebSocketConnection(Connection):
    """Receives from one address.

    Whether the server is still there is asked only while nothing comes: a reader that is slow and makes
    the server wait must not take its own delay for the server's.
    """

    def __init__(self, uri: str, intake: Intake, reconnect: int | None, largest: int):
        super().__init__(intake.name, intake.inbox, reconnect)
        self._uri, self._intake, self._largest = uri, intake, largest
        self._connect, self._failures = _library(intake.name)
        self._socket: Any = None

    def session(self) -> None:
        """Connect and receive until the server or :meth:`hang_up` closes."""
        failures = self._failures
        try:
            with self._opened() as self._socket:
                self.connected()
                self._receive()
        except failures.ConnectionClosed as error:
            if not self.stopping.is_set():
                self._closed(error)
        except failures.InvalidStatus as error:
            self._refused(error.response.status_code, error)
        except (failures.InvalidURI, ssl.SSLCertVerificationError) as error:
            raise SourceError(
                f"{self.name}: {error}; check the address, or the server's certificate"
            ) from error
        except (OSError, failures.WebSocketException) as error:  # a time-out is an OSError
            raise LostError(str(error) or type(error).__name__) from error
        finally:
            self._socket = None

    def hang_up(self) -> None:
        """Close the connection; the session ends by it."""
        socket = self._socket
        if socket is not None:
            with suppress(Exception):
                socket.close()

    def _opened(self) -> Any:
        return self._connect(
            self._uri,
            open_timeout=_OPEN_TIMEOUT,
            close_timeout=_CLOSE_TIMEOUT,
            ping_interval=None,
            max_size=self._largest,
        )

    def _receive(self) -> None:
        while not self.stopping.is_set():
            try:
                message = self._socket.recv(timeout=_SILENCE)
            except TimeoutError:
                self._probe()
                continue
            self.alive()
            self._deliver(message, time.perf_counter())

    def _deliver(self, message: str | bytes, at: float) -> None:
        binary = self._intake.reader.binary
        if isinstance(message, str) or self._intake.reader.json:
            self._intake.take_json(message, at)
        else:
            self._intake.take_binary(message, binary or _DEFAULT, at)

    def _probe(self) -> None:
        if not self._socket.ping().wait(_SILENCE):
            raise LostError(f"no answer for {_SILENCE:g} s")

    def _closed(self, error: Any) -> None:
        """What an end of the connection means: code 1000 is the end of the data."""
        if error.rcvd is not None and error.rcvd.code == _DONE:
            return
        if error.sent is not None and error.sent.code == _TOO_BIG:
            self._intake.bad(f"it is larger than {self._largest} bytes; raise --max-message to take it")
            raise LostError("a message was too large") from error
        raise LostError(str(error)) from error

    def _refused(self, code: int, error: Exception) -> None:
        if 400 <= code < 500 and code not in _LATER:
            raise SourceError(
                f"{self.name}: the server refuses with HTTP status {code}; check the path and the password"
            ) from error
        raise LostError(f"HTTP status {code}") from error


def open_websocket(uri: str, request: Request) -> Source:
    """The source of ``ws://HOST[:PORT]/PATH`` or ``wss://``.

    Raises:
        SourceError: the server cannot be reached or refuses, or websockets is missing.
        UsageError: the address is none.
    """
    parts = urlsplit(uri)
    if not parts.hostname:
        raise UsageError(f"{uri} names no host; write {parts.scheme}://HOST:PORT/PATH")
    return open_messages(
        public_name(uri),
        request,
        lambda intake: WebSocketConnection(uri, intake, request.reconnect, request.max_message),
    )


def public_name(uri: str) -> str:
    """The address without a password, for messages."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _library(name: str) -> tuple[Any, Any]:
    """The function that connects, and the module of its failures."""
    try:
        return import_module("websockets.sync.client").connect, import_module("websockets.exceptions")
    except ImportError as error:
        raise SourceError(f"{name} needs websockets; pip install 'streamssm[live]'") from error
