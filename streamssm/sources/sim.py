"""``sim:FILE``: a file played back as if live, paced by the item clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

from streamssm.sources.base import Array, Source


class SimSource(Source):
    """Hands out each chunk when its last item would have been recorded.

    The clock starts at the first read. ``due`` is when the latest chunk was owed: a reader that
    falls behind gets its chunks at once, and its lateness shows.
    """

    def __init__(
        self,
        source: Source,
        rate: Fraction,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.name, self.total = f"sim:{source.name}", source.total
        self._source, self._rate, self._now, self._sleep = source, rate, now, sleep
        self._start: float | None = None
        self._items = 0

    def read(self, count: int) -> Array:
        """The next items, not before they are due."""
        if self._start is None:
            self._start = self._now()
        items = self._source.read(count)
        self._items += len(items)
        self.due = self._start + float(self._items / self._rate)
        wait = self.due - self._now()
        if wait > 0 and len(items):
            self._sleep(wait)
        return items

    def close(self) -> None:
        """Close the source below."""
        self._source.close()
