"""A step of a pool: a block of every stream that has one, in as few backend calls as there need be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.backends import Call, Slots
from streamssm.collect import Key, Take
from streamssm.errors import BackendError
from streamssm.frames import FrameRule
from streamssm.readiness import Readiness
from streamssm.slot import Index, Slot, Table, index_of

Array = npt.NDArray[Any]

_NONE: Array = np.zeros(0, np.intp)


class BatchStep:
    """Runs the streams of a table; for one thread at a time, the one that holds the ``states``.

    ``lock`` guards the table; ``forget(key)`` is called with it held for a stream that has ended.
    """

    def __init__(
        self,
        table: Table,
        states: Slots,
        rules: Sequence[FrameRule],
        readiness: Readiness,
        lock: threading.RLock,
        forget: Callable[[Key], None],
    ) -> None:
        self._table, self._states, self._rules, self._readiness = table, states, rules, readiness
        self._lock, self._forget = lock, forget

    def run(self, take: Take) -> None:
        """Run one block of every stream that has one, and hand on what comes out of each call.

        Raises:
            BackendError, StreamTornError: as of :meth:`streamssm.pool.Pool.step`.
        """
        table, ran = self._table, list[Array]()
        try:
            for items, call in self._calls(self._chosen()):
                if ran:
                    take.settle()
                rows = np.asarray(call.slots, np.intp)
                try:
                    self._run(call, items, rows, take)
                except Exception:
                    table.suspect[rows] = table.trouble = True
                    if not ran:
                        raise
                    break
                ran.append(rows)
        except BaseException:  # an interrupt: what the others returned is lost
            for rows in ran:
                table.tear(rows)
            raise

    def _chosen(self) -> Array:
        """The streams to run: all that are ready, but suspects apart from others."""
        table = self._table
        with self._lock:
            self._readiness.behind = False
            ready = np.flatnonzero(table.ready)
            if table.trouble:
                suspects = ready[table.suspect[ready]]
                ready = suspects if len(suspects) else ready
                table.trouble = bool(table.suspect.any() or table.torn.any())
        return ready

    def _calls(self, ready: Array) -> Iterator[tuple[int, Call]]:
        """What is to be run, and how many items of each stream: a block, or what is left at the end."""
        table = self._table
        last = counts = _NONE
        if table.ending_count:
            items = table.items[ready]
            short = items < table.block
            ready, last, counts = ready[~short], ready[short], items[short]
        others = _NONE
        if len(ready) < table.taken_count:
            wait = table.taken.copy()
            wait[ready] = False
            others = np.flatnonzero(wait)
        yield from ((table.block, call) for call in self._states.calls(ready, others))
        for count in np.unique(counts).tolist() if len(last) else ():
            yield from ((count, call) for call in self._states.last_calls(last[counts == count], count))

    def _run(self, call: Call, items: int, rows: Array, take: Take) -> None:
        table, at = self._table, index_of(rows)
        if table.trouble and table.torn[at].any():
            torn = int(rows[table.torn[rows]][0])
            Slot(table, table.keys[torn], torn).require_whole()
        places = rows if call.rows is call.slots else np.asarray(call.rows, np.intp)
        with self._lock:
            call.x[at if places is rows else index_of(places), :items] = table.stage[at, :items]
        try:
            outputs = call.run()
            with self._lock:
                for which, cut in table.cuts(rows, at, self._rules, [y.shape[1] for y in outputs]):
                    if which is None:
                        take(rows, places, cut, outputs)
                    else:
                        take(rows[which], places[which], cut, outputs)
                self._advance(rows, at, items)
        except BackendError:
            raise
        except BaseException:
            table.tear(rows)
            raise

    def _advance(self, rows: Array, at: Index, items: int) -> None:
        """Streams have been run; one may be ready again, behind those that have waited longer."""
        table = self._table
        if table.trouble:
            table.suspect[at] = False
        if items < table.block:
            for key in table.keys[rows].tolist():
                self._forget(key)
        elif table.drop(rows, at, items):
            self._readiness.note_behind()
