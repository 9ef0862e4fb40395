"""What sources of rows share: lines that hold one item each, and what becomes of those that do not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from streamssm import clock
from streamssm.errors import SourceError, UsageError
from streamssm.sources.base import (
    INVALID,
    MISSING,
    Array,
    Gap,
    Request,
    Source,
    channel_map,
    check_declared_rate,
)
from streamssm.sources.bytestream import LINE, ByteStream
from streamssm.sources.timeline import Timeline
from streamssm.waiting import Interrupted

_LINES = 4096  # read at once, at most
_SHOWN = 40  # characters of what is wrong


class BadRowError(Exception):
    """Why a line is no row, or none of the ``rows`` that it should be."""

    def __init__(self, message: str, rows: int = 1):
        super().__init__(message)
        self.rows = rows


class Row(NamedTuple):
    """The numbers of a line, and when it was measured, in seconds, where a column says so."""

    values: Sequence[float]
    moment: float | None = None


class RowParser(Protocol):
    """Turns lines into rows."""

    def parse(self, line: bytes) -> Sequence[Row]:
        """The rows of a line; none if it is empty, a comment or a header.

        Raises:
            BadRowError: the line cannot be read.
            SourceError: nothing can be read, whatever follows.
        """


class RowSource(Source):
    """Items that lines hold. The first row decides the number of columns.

    With ``on_bad`` "skip" a line that cannot be read is left out as a gap of one "invalid" item. Where
    rows say when they were measured the moments decide how many items are really missing.
    """

    def __init__(self, name: str, stream: ByteStream, parser: RowParser, request: Request):
        check_declared_rate(name, request)
        self.name = name
        self.notes = self._notes = list[str]()
        self._stream, self._parser, self._request = stream, parser, request
        self._timeline = _timeline(name, request)
        self._line = self._columns = 0
        self._bad = 0  # rows left out since the latest one
        self._ready: deque[tuple[list[Gap], list[Sequence[float]]]] = deque()  # rows after their gaps
        self._ended = False
        self._damage: SourceError | None = None

    def read(self, count: int) -> Array:
        """The next rows; a line that is not a row is refused with its number, or left out."""
        while not self._ready and not self._ended:
            self._fetch(min(count, _LINES))
        self.gaps = ()
        rows: list[Sequence[float]] = []
        if self._ready:
            self.gaps, waiting = self._ready.popleft()
            rows, rest = waiting[:count], waiting[count:]
            if rest:
                self._ready.appendleft(([], rest))
        elif self._damage is not None:
            raise self._damage
        return self._items(rows)

    def close(self) -> None:
        """Close the byte stream."""
        self._stream.close()

    def _items(self, rows: Sequence[Sequence[float]]) -> Array:
        to_items = channel_map(self.name, self._columns, self._request, "columns")
        with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which the stream refuses
            block = np.array(rows, self._request.input.dtype)
        return to_items(block.reshape(len(rows), self._columns))

    def _fetch(self, count: int) -> None:
        try:
            lines = self._stream.read_lines(count)
        except Interrupted:
            if self.replayable or self.grows or not (self._bad and self._columns):
                raise
            lines = []  # of a pipe nobody else will tell what was left out
        try:
            for line in lines:
                self._take(line)
            if not lines:
                self._end()
        except SourceError as error:
            self._damage, self._ended = error, True

    def _take(self, line: bytes) -> None:
        self._line += 1
        try:
            if len(line) > LINE:
                raise BadRowError(f"it is longer than {LINE >> 20} MiB; is this text?")
            for row in self._parser.parse(line):
                self._add(row)
        except BadRowError as error:
            message = f"{self.name} line {self._line}: {error}"
            if self._request.on_bad == "refuse":
                raise SourceError(f"{message}; correct it, or leave such lines out: --on-bad skip") from None
            if not self._notes:
                self._notes.append(f"{message}; left out, and so are more such lines")
            self._bad += error.rows

    def _add(self, row: Row) -> None:
        if not self._columns:
            self._check_columns(len(row.values))
            self._columns = len(row.values)
        if len(row.values) != self._columns:
            raise BadRowError(f"it has {len(row.values)} columns, the lines before {self._columns}")
        gaps = self._gaps(row)
        if gaps or not self._ready:
            self._ready.append((gaps, []))
        self._ready[-1][1].append(row.values)

    def _check_columns(self, columns: int) -> None:
        try:
            channel_map(self.name, columns, self._request, "columns")
        except SourceError as error:
            if self._request.on_bad == "refuse":
                raise
            raise BadRowError(str(error)) from error  # a pipe may start in the middle of a line

    def _gaps(self, row: Row) -> list[Gap]:
        bad, self._bad = self._bad, 0
        if self._timeline is None or row.moment is None:
            return [Gap(INVALID, bad)] if bad else []
        try:
            away = self._timeline.missing(row.moment)
        except ValueError as error:
            raise SourceError(f"{self.name} line {self._line}: {error}") from error
        # garbage between the lines of a whole table stands for no item
        gaps = [Gap(INVALID, min(bad, away))] if bad else []
        return [*gaps, Gap(MISSING, away - bad)] if away > bad else gaps

    def _end(self) -> None:
        self._ended = True
        if not self._columns:
            raise SourceError(f"{self.name} holds no rows of numbers; there is nothing to push")
        if self._bad:
            self._ready.append(([Gap(INVALID, self._bad)], []))


def shown(cell: str) -> str:
    """The beginning of something that is wrong, quoted."""
    return repr(cell[:_SHOWN])


def _timeline(name: str, request: Request) -> Timeline | None:
    if request.time_column is None:
        return None
    if request.input.rate is None:
        raise UsageError(
            f"--time-column {request.time_column}: the model has no rate to compare the times of {name} "
            "with; leave it out"
        )
    return Timeline(clock.exact(request.input.rate), request.time_column)
