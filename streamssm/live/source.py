"""A source that comes by itself: a receiver fills an inbox, and the reader takes items out of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from threading import Thread
from typing import Protocol

from streamssm import waiting
from streamssm.live.inbox import Inbox, Piece
from streamssm.sources.base import Array, Gap, Source
from streamssm.waiting import Interrupted, Stop

_PATIENCE = 5.0  # seconds for what has come before a stop


class Receiver(Protocol):
    """Whatever puts into an inbox: a connection, a driver's callback, a thread that reads."""

    def start(self) -> None:
        """Begin to put into the inbox; what goes wrong later is given to ``inbox.end``.

        Raises:
            SourceError: it cannot be started.
        """

    def stop(self) -> None:
        """Put nothing more, soon, and leave in the inbox what is there; may be called twice, or without
        :meth:`start`."""


class Conversion(Protocol):
    """Frames as they are received to items; :class:`streamssm.sources.convert.Converter` is one."""

    def push(self, frames: Array) -> Array:
        """The items that become known by these frames."""

    def flush(self) -> Array:
        """The rest."""

    def gap(self, frames: int) -> tuple[Array, int]:
        """The items left before a gap of so many frames, and how many items the gap is."""

    def needed(self, items: int) -> int:
        """Frames that bring about so many items."""


class LiveSource(Source):
    """Items of what a receiver puts into ``inbox``; without a ``converter`` they are items already.

    ``due`` is when the latest items had been received. When a stop is requested, the receiver is stopped
    and what it had received by then is still given: a run of it ends by itself. The receiver starts with
    the first read.
    """

    def __init__(self, name: str, inbox: Inbox, receiver: Receiver, converter: Conversion | None = None):
        self.name, self.inbox = name, inbox
        self.gaps: Sequence[Gap] = ()
        self._receiver, self._converter = receiver, converter
        self._started = self._finished = False
        self._ready: deque[tuple[tuple[Gap, ...], Array]] = deque()
        self._gaps: tuple[Gap, ...] = ()  # before the items that come next
        self._ended = False

    def read(self, count: int) -> Array:
        """The next items.

        Raises:
            SourceError: the receiver gave up, and all that it had received was given.
        """
        if not self._started:
            self._started = True
            try:
                self._receiver.start()
            except Interrupted:
                self.finish()
        while not self._ready:
            self._fetch(count)
        self.gaps, items = self._ready.popleft()
        if len(items) > count:
            self._ready.appendleft(((), items[count:]))
        return items[:count]

    def settle(self) -> None:
        """After the end: tell what went wrong.

        Raises:
            SourceError: the receiver gave up.
        """
        self.inbox.get(1, timeout=0)

    def finish(self) -> None:
        """Receive nothing more; what has been received can still be read."""
        if not self._finished:
            self._finished = True
            self.inbox.release()
            self._receiver.stop()
            self.inbox.end()

    def close(self) -> None:
        """Stop the receiver and forget what nobody has read."""
        self.inbox.close()
        self._receiver.stop()

    def _fetch(self, count: int) -> None:
        piece = self._next(1 if count < 1 else count)
        if self._converter is None:
            self._gaps += piece.gaps
        else:
            for gap in piece.gaps:
                self._convert_gap(self._converter, gap)
        self.due = self.due if piece.at is None else piece.at
        if len(piece.items):
            self._add(piece.items if self._converter is None else self._converter.push(piece.items))
        elif piece.ended:
            self._end()

    def _next(self, count: int) -> Piece:
        if (stop := waiting.current()) is not None and stop.requested:
            self.finish()
        frames = count if self._converter is None else self._converter.needed(count)
        try:
            return self.inbox.get(frames)
        except Interrupted:
            self.finish()
            return self.inbox.get(frames)

    def _convert_gap(self, converter: Conversion, gap: Gap) -> None:
        """A gap ends a stretch of frames; its length is in items from here on."""
        tail, missing = converter.gap(gap.items or 0)
        self._add(tail)
        self._gaps += (gap if gap.items is None else Gap(gap.reason, missing, gap.seconds),)

    def _add(self, items: Array) -> None:
        if len(items):
            self._ready.append((self._gaps, items))
            self._gaps = ()

    def _end(self) -> None:
        if not self._ended and self._converter is not None:
            self._add(self._converter.flush())
        self._ended = True
        if not self._ready:
            self._ready.append((self._gaps, self._nothing()))
            self._gaps = ()

    def _nothing(self) -> Array:
        return self._converter.flush() if self._converter is not None else self.inbox.empty


class Forwarder:
    """A receiver that reads another source in a thread, ``count`` items at a time."""

    def __init__(self, source: Source, inbox: Inbox, count: int):
        self._source, self._inbox, self._count = source, inbox, count
        self._stop, self._until = Stop(), 0.0
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        self._thread = waiting.started("streamssm-source", self._run)

    def stop(self) -> None:
        """Take what has come, then read nothing more; a read that cannot be left is not waited for."""
        self._until = time.monotonic() + _PATIENCE
        self._stop.request()
        if self._thread is not None:
            self._thread.join(2 * _PATIENCE)

    def _run(self) -> None:
        try:
            with self._stop.leaving():
                self._forward()
        except Interrupted:
            self._inbox.end()
        except Exception as error:
            self._inbox.end(error)

    def _forward(self) -> None:
        source, inbox = self._source, self._inbox
        while not self._stop.requested or (not source.replayable and time.monotonic() < self._until):
            items = source.read(self._count)
            for gap in source.gaps:
                inbox.lost(gap)
            if not len(items):
                break
            if not inbox.put(items, source.due):
                return
        inbox.end()


class ForwardedSource(LiveSource):
    """Another source, read by a thread of its own as fast as it comes, so that what comes too fast waits
    here by the inbox's rules."""

    def __init__(self, source: Source, inbox: Inbox, count: int):
        super().__init__(source.name, inbox, Forwarder(source, inbox, count))
        self.total, self._source = source.total, source

    @property
    def notes(self) -> Sequence[str]:  # type: ignore[override]
        """Those of the source below."""
        return self._source.notes

    def close(self) -> None:
        """Stop reading, and close the source below."""
        super().close()
        self._source.close()
