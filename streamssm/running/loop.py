"""The loop: items out of a source, through a stream, to rows.

What is written depends on the items alone, not on how reads fell. Reading happens outside of ``lock``,
all else inside: whoever holds it while the loop is ``whole`` sees the stream, the rows, what was written
and the place in the source as they belong together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm import clock
from streamssm.alphabet import Encoder, Piece
from streamssm.errors import InputError, SourceError
from streamssm.live.source import LiveSource
from streamssm.outputs import Outputs, by_name
from streamssm.report import RunReport
from streamssm.rows.base import Row, Rows
from streamssm.rows.decisions import DecisionRows
from streamssm.rows.tokens import TokenRows
from streamssm.running.gaps import plan
from streamssm.scoring import tokens_of
from streamssm.sources.base import Gap, Source
from streamssm.sources.text import TextSource
from streamssm.stream import Stream
from streamssm.waiting import Interrupted, Stop

Array = npt.NDArray[Any]
Write = Callable[[Sequence[Row]], object]

RECORD = "record"
_PATIENCE = 5.0  # seconds for what has come of a source that cannot be left, before a stop


@dataclass
class Place:
    """Where in a source the run is: records that have ended, the name of the last of them, and the items
    taken of the one that is open. ``complete`` says that nothing is left."""

    records: int = 0
    ended: str | None = None
    record: str | None = None
    items: int = 0
    complete: bool = False

    @property
    def open(self) -> bool:
        """Whether there is a sequence to be flushed: one that has items, or the only one."""
        return self.items > 0 or not self.records


class Loop:
    """One run. ``write`` takes the rows as they become known; ``chunk`` is how many items are read at most
    at a time; ``fill`` puts items in the place of those that a source is known to have lost."""

    def __init__(
        self,
        stream: Stream,
        rows: Rows,
        source: Source,
        write: Write,
        report: RunReport,
        *,
        chunk: int,
        fill: bool = True,
        encoder: Encoder | None = None,
        stop: Stop | None = None,
    ):
        self.stream, self.rows, self.source, self.report = stream, rows, source, report
        self.encoder, self.stop = encoder, stop or Stop()
        self.lock = threading.Lock()
        self.whole = True  # not after an error, or a second signal, in the middle of a step
        self.place = Place()
        self.changes = 0  # what has happened so far, in no unit
        self.latest: Array | None = None  # what the first output gave for the latest items
        self.passed = 0  # items of gaps that the rows count and the stream has not seen
        self.last: Array | None = None  # the last item pushed, of features: what fills a gap
        self._manifest = stream.model.manifest
        self._rate = clock.input_rate(self._manifest)
        self._write_rows, self._chunk = write, chunk
        self._whole_blocks = chunk % stream.block == 0
        self._patience: float | None = None  # until when to go on after a stop
        self._fill = fill and self._manifest.input.kind != "tokens"

    def advance(self) -> bool:
        """Read once and work on what came; False at the end, and after a stop.

        Raises:
            SourceError: the source is damaged here, and all before was written.
            InputError: the items do not fit the model.
        """
        if self.place.complete:
            return False
        if self._is_decided():
            return self._leave_record()
        items = self._read()
        if items is None:
            return False
        with self._changing():
            return self._take(items)

    def finish(self) -> None:
        """End the stream: write what waits for the end."""
        with self._changing():
            self._end_text(closing=True)
            if self.place.open:
                self._flush()

    def give_up(self) -> None:
        """After damage, or items that do not fit: write what waits, if anything came before it."""
        with self._changing():
            if self.place.open and self.stream.position:
                self._flush()

    def end_text(self, closing: bool) -> None:
        """Push the tokens that waited for the end of a text; the stream goes on."""
        with self._changing():
            self._end_text(closing)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self.lock:
            self.whole = False
            self.changes += 1
            yield
            self.whole = True

    # Reading.

    def _read(self) -> Array | None:
        """The next items; None after a stop.

        What can be read again ends at once. Of anything else all that has come is worked on first: a live
        source ends by itself, a pipe where it would wait.
        """
        if self.stop.requested and not self._goes_on():
            return None
        # back to a block's edge after a short read: pushes of whole blocks are the fastest
        count = self._chunk - (self.stream.pending % self._chunk if self._whole_blocks else 0)
        with suppress(Interrupted), self.stop.leaving():
            return self.source.read(count)
        return None

    def _goes_on(self) -> bool:
        if self.source.replayable:
            return False
        now = time.monotonic()
        self._patience = self._patience or now + _PATIENCE
        return isinstance(self.source, LiveSource) or now < self._patience

    def _take(self, items: Array) -> bool:
        source = self.source
        self.place.record = source.record
        for gap in source.gaps:
            self._gap(gap)
        if not len(items):
            return self._end_of_record()
        self._step(items, source.taken)
        self.place.items += len(items)
        return True

    def _is_decided(self) -> bool:
        """Whether what is left of a record changes nothing."""
        return isinstance(self.rows, DecisionRows) and self.rows.decided and self.place.record is not None

    def _leave_record(self) -> bool:
        with suppress(Interrupted), self.stop.leaving():
            self.source.skip_record()
            with self._changing():
                return self._end_of_record()
        return False

    def _end_of_record(self) -> bool:
        """End the record, if there is one; whether something may follow."""
        more = self.source.more
        if self.place.record is not None:
            self._end_text(closing=True)
            self._flush()
            self.stream.reset()
            self.last, self.passed = None, 0
            self.place = Place(self.place.records + 1, self.place.record)
            self.report.records += 1
        if not more:
            self.place.complete = True
            if isinstance(self.source, LiveSource):
                self.source.settle()
        return more

    # Pushing and writing.

    def _step(self, items: Array, pieces: Sequence[Piece]) -> None:
        """Push some items and write what becomes known by them."""
        compute = self._push(items, pieces)
        due = self.source.due
        self.report.paced = due is not None
        self.report.add(len(items), compute, compute if due is None else time.perf_counter() - due)
        if self._manifest.input.kind == "features":
            self.last = np.array(items[-1])

    def _push(self, items: Array, pieces: Sequence[Piece] = ()) -> float:
        began = time.perf_counter()
        outputs = self._outputs(items)
        compute = time.perf_counter() - began
        if isinstance(self.rows, TokenRows):
            self.rows.note(items.tolist(), pieces)
        elif isinstance(self.rows, DecisionRows):
            self.rows.count(len(items))
        self.latest = self._counted(outputs)
        self._write(self.rows.push(outputs))
        return compute

    def _counted(self, outputs: Outputs) -> Array:
        """The first output; NaN in it is told, as events do not say it."""
        values = outputs[self._manifest.outputs[0].name]
        if values.dtype.kind == "f" and np.isnan(values).any():
            self.report.nan += int(np.isnan(values).reshape(len(values), -1).any(1).sum())
        return values

    def _outputs(self, items: Array) -> Outputs:
        try:
            return by_name(self._manifest, self.stream.push(items))
        except InputError as error:
            place = f"chunk at item {self.stream.position}"
            raise InputError(f"{self._where()}, {place}: {error}") from error

    def _where(self) -> str:
        record = self.place.record
        return self.source.name if record is None else f"{self.source.name}, {record}"

    def _write(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        if (record := self.place.record) is not None:
            rows = [{RECORD: record, **row} for row in rows]
        self._write_rows(rows)
        self.report.lines += len(rows)

    def _flush(self) -> None:
        began = time.perf_counter()
        outputs = by_name(self._manifest, self.stream.flush())
        self.report.compute += time.perf_counter() - began
        self._counted(outputs)
        self._write([*self.rows.push(outputs), *self.rows.flush()])

    def _end_text(self, closing: bool) -> None:
        if self.encoder is None or not isinstance(self.source, TextSource):
            return
        try:
            self.encoder.end(closing=closing)
        except InputError as error:
            raise SourceError(f"{self.source.name}: {error}") from error
        while pieces := self.encoder.take(self._chunk):
            self._step(tokens_of(pieces), pieces)

    # Gaps.

    def _gap(self, gap: Gap) -> None:
        """Write that something is missing, and put something in its place if it is known how much."""
        self.report.add_gap(gap)
        row: Row = {"gap": gap.reason, "items": gap.items, "seconds": gap.seconds}
        at = self.stream.position + self.passed
        row |= {"index": at} if self._rate is None else {"time": clock.seconds(at, self._rate)}
        self._write([row])
        if self._fill:
            self._mend(gap)

    def _mend(self, gap: Gap) -> None:
        pushed, passed = plan(gap, self._manifest, self.stream.block)
        if self.rows.kind == "audio":
            pushed, passed = pushed + passed, 0  # every frame of a recording is there
        left = pushed
        while left > 0:
            count = min(left, max(self._chunk, self.stream.block))
            self.report.compute += self._push(self._stand_in(count))
            left -= count
        self.rows.pass_over(passed)
        self.passed += passed
        self.report.filled += pushed
        self.report.passed += passed

    def _stand_in(self, count: int) -> Array:
        """Silence for samples; for features the last row again, zeros before the first."""
        spec = self._manifest.input
        items = np.zeros((count, *spec.shape), spec.dtype)
        if self.last is not None:
            items[:] = self.last
        return items
