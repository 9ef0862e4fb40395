"""Blocked calls that a request to stop leaves, where nothing is lost by leaving.

A signal handler that raises may throw away what a read has just returned. Here it only writes a byte to
a pipe: whoever waits for data waits for that pipe as well, and leaves with :class:`Interrupted` before
anything was read. Sources of bytes call :func:`readable` before a read, those that wait for a moment
call :func:`sleep` or :func:`check`; without a :class:`Stop` around them they behave as if it were not here.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

_SLICE = 0.05  # seconds; how often a wait that has no descriptor looks up


class Interrupted(BaseException):
    """Raised out of a wait, where nothing is lost by leaving."""


class Stop:
    """A request to stop: made once, from any thread or from a signal handler, and never taken back."""

    def __init__(self) -> None:
        self.requested = False
        self.exposed = False  # whether a wait may be left by an exception, where there is nothing better
        self._pipe: tuple[int, int] | None = None
        if os.name == "posix":
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)

    @property
    def descriptor(self) -> int | None:
        """What a handler may write a byte to: the end of the pipe that wakes the waits."""
        return None if self._pipe is None else self._pipe[1]

    def request(self) -> None:
        """Ask all who wait under :meth:`leaving` to leave."""
        self.requested = True
        if self._pipe is not None:
            with suppress(OSError):  # full: then it is readable already
                os.write(self._pipe[1], b"\0")

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """A block of this thread whose waits are left when a stop is requested."""
        token = _current.set(self)
        self.exposed = self._pipe is None
        try:
            yield
        finally:
            self.exposed = False
            _current.reset(token)

    def close(self) -> None:
        """Give the pipe back; nobody may be waiting."""
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)

    def __del__(self) -> None:
        self.close()

    def wait_for(self, descriptor: int) -> None:
        """Wait until there is something to read."""
        while not self.requested and self._pipe is not None:
            found = _ready([descriptor, self._pipe[0]])
            if descriptor in found:
                return
            self._drain()
        self._leave()

    def sleep(self, seconds: float) -> None:
        """Sleep for so long."""
        end = time.perf_counter() + seconds
        while not self.requested and (left := end - time.perf_counter()) > 0:
            if self._pipe is None:
                time.sleep(min(left, _SLICE))
            elif _ready([self._pipe[0]], left):
                self._drain()
        self._leave()

    def _drain(self) -> None:
        """The byte may be of a signal whose handler has yet to run; a request keeps its byte."""
        if not self.requested and self._pipe is not None:
            with suppress(OSError):
                os.read(self._pipe[0], 1)

    def _leave(self) -> None:
        if self.requested:
            raise Interrupted


_current: ContextVar[Stop | None] = ContextVar("stop", default=None)


def _ready(descriptors: list[int], timeout: float | None = None) -> set[int]:
    """The descriptors that can be read, or have ended."""
    try:
        return set(select.select(descriptors, [], [], timeout)[0])
    except ValueError:  # a number that select cannot hold; poll can, but on macOS no terminals
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        milliseconds = None if timeout is None else timeout * 1000
        return {descriptor for descriptor, _ in poll.poll(milliseconds)}


def current() -> Stop | None:
    """The request that waits of this thread heed."""
    return _current.get()


def check() -> None:
    """Leave now, if a stop is requested."""
    if (stop := _current.get()) is not None and stop.requested:
        raise Interrupted


def readable(file: Any) -> None:
    """Wait until a file, pipe or socket has something to read; at once for one without a descriptor."""
    stop = _current.get()
    if stop is None or os.name != "posix":
        return
    try:
        descriptor = file.fileno()
    except (OSError, AttributeError, ValueError):
        return
    stop.wait_for(descriptor)


def sleep(seconds: float) -> None:
    """Sleep, unless a stop is requested."""
    if (stop := _current.get()) is None:
        time.sleep(seconds)
    else:
        stop.sleep(seconds)


def slices(timeout: float | None) -> Iterator[float]:
    """The pieces of a wait on a lock, between which a stop is looked at; they end with the timeout.

    A lock cannot be waited for together with a pipe, so such a wait looks up every now and then.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        check()
        left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
        if left <= 0:
            return
        yield left


def started(name: str, target: Any) -> threading.Thread:
    """A thread of ours: it does not keep the process alive."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
