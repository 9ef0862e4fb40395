"""Which streams of a pool a step would run, and when such a step is worth its while."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.slot import Table

Array = npt.NDArray[Any]


class Readiness:
    """The ready ones of a table's streams, and who waits for them.

    All but :meth:`wait` is to be called with ``lock`` held, which guards the table. ``behind`` is whether
    a stream that was just run has another block already.
    """

    def __init__(self, table: Table, lock: threading.RLock, gather: float) -> None:
        self.behind = False
        self._table, self._gather = table, gather
        self._changed = threading.Condition(lock)

    def wait(self, timeout: float | None) -> bool:
        """See :meth:`streamssm.pool.Pool.wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                due = self._first() + self._gather if self._table.ready_count else None
                if due is not None and (self.behind or self._all() or due <= now):
                    return True
                if deadline is not None and deadline <= now:
                    return bool(self._table.ready_count)
                ends = [at for at in (due, deadline) if at is not None]
                self._changed.wait(min(ends) - now if ends else None)

    def note(self, row: int) -> None:
        """A stream may have become ready now."""
        if self._table.becomes_ready(row):
            self.tell()

    def note_rows(self, rows: Array) -> None:
        """Streams may have become ready now."""
        first = not self._table.ready_count
        if self._table.become_ready(rows) and (first or self._all()):
            self._changed.notify_all()

    def note_behind(self) -> None:
        """A stream that was just run is ready again."""
        self.behind = True
        self._changed.notify_all()

    def tell(self) -> None:
        """Wake who waits where it makes a difference to him: the first is ready, or all are."""
        count = self._table.ready_count
        if count and (count == 1 or self._all()):
            self._changed.notify_all()

    def _first(self) -> float:
        """When the stream that has been ready for the longest became so."""
        return float(np.min(self._table.since, where=self._table.ready, initial=np.inf))

    def _all(self) -> bool:
        table = self._table
        return table.ready_count == table.taken_count - table.paused_count
