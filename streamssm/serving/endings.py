"""How a session ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ending:
    """How a session ends: the close code of the websocket (None: the client has gone), and a word for the
    metrics. ``flush``: what is pending is worked on and sent first."""

    code: int | None
    reason: str
    text: str = ""
    flush: bool = False
    error: BaseException | None = None


def failed(error: BaseException) -> Ending:
    """The stream cannot go on."""
    return Ending(1011, "failed", "the stream failed", error=error)


GONE = Ending(None, "client gone")
EOF = Ending(1000, "eof", flush=True)
DRAINED = Ending(1001, "drained", "the server shuts down", flush=True)
IDLE = Ending(1008, "idle", "nothing was sent for too long", flush=True)
SLOW = Ending(None, "slow client")
