"""``sim:FILE``: a file played back as if live, paced by the item clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

from streamssm import waiting
from streamssm.sources.base import Array, Source


class SimSource(Source):
    """Hands out each chunk when its last item would have been recorded.

    The clock starts at the first read and runs on through all records; gaps of known items take their
    time. ``due`` is when the latest chunk was owed: a reader that falls behind gets its chunks at once, and
    its lateness shows.
    """

    def __init__(
        self,
        source: Source,
        rate: Fraction,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = waiting.sleep,
    ):
        self.name, self.total = f"sim:{source.name}", source.total
        self.replayable, self.notes = source.replayable, source.notes
        self._source, self._rate, self._now, self._sleep = source, rate, now, sleep
        self._start: float | None = None
        self._items = 0

    def read(self, count: int) -> Array:
        """The next items, not before they are due."""
        if self._start is None:
            self._start = self._now()
        items = self._source.read(count)
        self._follow()
        self._items += len(items) + sum(gap.items or 0 for gap in self.gaps)
        self.due = self._start + float(self._items / self._rate)
        wait = self.due - self._now()
        if wait > 0 and len(items):
            self._sleep(wait)
        return items

    def skip(self, count: int) -> None:
        """Leave out items without waiting for them."""
        self._source.skip(count)

    def skip_record(self) -> None:
        """Leave out a record without waiting for it."""
        self._source.skip_record()
        self._follow()

    def close(self) -> None:
        """Close the source below."""
        self._source.close()

    def _follow(self) -> None:
        source = self._source
        self.record, self.more, self.gaps, self.notes = source.record, source.more, source.gaps, source.notes
