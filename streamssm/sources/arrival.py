"""Whether samples without a header come as fast as they are said to."""

from __future__ import annotations

import time
from collections.abc import Callable

from streamssm.sources.base import Array, Request, Source
from streamssm.sources.frames import FrameSource
from streamssm.sources.raw import RawSource

_WATCHED = 10.0  # seconds
_TOLERANCE = 0.1
_WAITING = 0.5  # of the time; who waits less is behind, and takes what is there as fast as it can


class WatchedSource(Source):
    """Raw samples, whose items are counted against the clock for ten seconds.

    Only a reader that mostly waits sees the sender's pace: a file that is piped in comes as fast as it is
    worked on, and says nothing.
    """

    def __init__(self, source: FrameSource, rate: float, now: Callable[[], float] = time.perf_counter):
        self.name, self.total = source.name, source.total
        self.notes = source.notes
        self._source, self._rate, self._now = source, rate, now
        self._began: float | None = None
        self._items = 0
        self._waited = 0.0
        self._watching = True

    def read(self, count: int) -> Array:
        """The next items."""
        if not self._watching:
            return self._source.read(count)
        before = self._now()
        items = self._source.read(count)
        self._watch(before, len(items))
        return items

    def close(self) -> None:
        """Close the source below."""
        self._source.close()

    def _watch(self, before: float, items: int) -> None:
        now = self._now()
        if self._began is None:  # a sender may take its time to begin
            self._began = now
            return
        self._items += items
        self._waited += now - before
        if (seconds := now - self._began) < _WATCHED and items:
            return
        self._watching = False
        seen = self._items / seconds if items else self._rate
        if self._waited > _WAITING * seconds and abs(seen / self._rate - 1) > _TOLERANCE:
            self._source.note(
                f"{self.name} brings {seen:.0f} items a second, not {self._rate:g}: if it is live, --rate, "
                "--channels or --input-format is wrong, and so are all times"
            )


def watched(source: Source, request: Request) -> Source:
    """The source; watched, if it is of raw samples that have a rate."""
    if isinstance(source, RawSource) and request.input.rate is not None and request.input.kind == "samples":
        return WatchedSource(source, request.input.rate)
    return source
