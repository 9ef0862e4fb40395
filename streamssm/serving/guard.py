"""Keeps connections from lingering: whoever has no request under way is let go after a while.

It lies between the transport and aiohttp's own protocol, which waits for headers for ever.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_SEND_BUFFER = 1 << 17  # bytes


class Door:
    """Lets in at most ``most`` connections, and closes those without a request for ``patience`` seconds."""

    def __init__(self, make: Callable[[], asyncio.Protocol], patience: float, most: int):
        self.turned_away = self.let_go = 0
        self._make, self._patience, self._most = make, patience, most
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    def __call__(self) -> asyncio.Protocol:
        """A protocol for a new connection."""
        return _Connection(self, self._make())

    def __len__(self) -> int:
        return len(self._open)

    def busy(self, transport: asyncio.BaseTransport | None) -> None:
        """A request has come in whole: it may take its time."""
        if (connection := self._find(transport)) is not None:
            connection.rest()

    def idle(self, transport: asyncio.BaseTransport | None) -> None:
        """The request is answered."""
        if (connection := self._find(transport)) is not None:
            connection.wait(self._patience)

    def abort_all(self) -> None:
        """Close every connection at once."""
        for transport in list(self._open):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    def enter(self, transport: asyncio.BaseTransport, connection: _Connection) -> bool:
        """Let a connection in, if there is room."""
        if len(self._open) >= self._most:
            self.turned_away += 1
            return False
        self._open[transport] = connection
        connection.wait(self._patience)
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        """A connection is closed."""
        self._open.pop(transport, None)

    def _find(self, transport: asyncio.BaseTransport | None) -> _Connection | None:
        return None if transport is None else self._open.get(transport)


class _Connection(asyncio.Protocol):
    """One connection: everything is passed on as it comes."""

    def __init__(self, door: Door, inner: asyncio.Protocol):
        self._door, self._inner = door, inner
        self._transport: asyncio.BaseTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # the kernel would keep megabytes for a client that does not read
        if (peer := transport.get_extra_info("socket")) is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if self._door.enter(transport, self):
            self._transport = transport
            self._inner.connection_made(transport)
        else:
            self.data_received = lambda data: None  # type: ignore[method-assign]
            self.eof_received = lambda: None  # type: ignore[method-assign]
            _abort(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.rest()
        if self._transport is not None:
            self._door.leave(self._transport)
            self._transport = None
            self._inner.connection_lost(error)

    def wait(self, seconds: float) -> None:
        """Close the connection if nothing happens for so long."""
        self.rest()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._let_go)

    def rest(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        self._timer = None
        if self._transport is not None:
            self._door.let_go += 1
            _abort(self._transport)


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
    else:
        transport.close()
