"""Rows of numbers as text: one item a line, columns by comma, semicolon, tab or space.

A first line that is not numbers is a header, wherever it comes again; empty lines and lines that start
with # are skipped. ``--columns`` picks columns by their names in the header.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Request, Source, check_path
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.gz import open_bytes
from streamssm.sources.rows import BadRowError, Row, RowSource, shown
from streamssm.sources.timeline import moment_of

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_INT64_MAX = 2**63 - 1
_NUMERIC = frozenset("0123456789+-.eE,;\t ")


class TableParser:
    """Lines of cells. The first row decides the separator."""

    def __init__(self, name: str, request: Request):
        self._name, self._request = name, request
        self._number = float if request.input.dtype == "float32" else int
        self._by_name = bool(request.names) or request.time_column is not None
        self._separator: str | None = None
        self._settled = False  # whether a row was read
        self._header: list[str] | None = None
        self._columns: list[int] = []  # those to take, where they are named
        self._clock: int | None = None

    def parse(self, line: bytes) -> Sequence[Row]:
        """The row of a line."""
        if b"\0" in line:
            raise BadRowError("it holds zero bytes, as UTF-16 does and files that are no text")
        text = line.decode("utf-8", "replace").strip("\ufeff\r\n ")
        if not text or text.startswith("#"):
            return ()
        cells = self._split(text)
        if cells == self._header or (self._header is None and not self._settled and self._is_header(cells)):
            return ()
        row = self._row(cells)
        self._settled = True
        return (row,)

    def _split(self, text: str) -> list[str]:
        if not self._settled:
            self._separator = next((mark for mark in ",;\t" if mark in text), None)
        if self._separator is None or '"' not in text:
            return [cell.strip(' "') for cell in text.split(self._separator)]
        try:
            return [cell.strip() for cell in next(csv.reader([text], delimiter=self._separator))]
        except csv.Error as error:  # such as a carriage return in the middle of a line
            raise BadRowError(f"{shown(text)} is no row of a table: {error}") from error

    def _is_header(self, cells: list[str]) -> bool:
        """Whether the first line is one; if columns are named it has to be."""
        wanted = [*self._request.names, *filter(None, [self._request.time_column])]
        missing = [name for name in wanted if name not in cells]
        if missing:
            message = f"there is no column {missing[0]!r} in the first line, {shown(','.join(cells))}"
            if self._request.on_bad == "skip":
                raise BadRowError(message)
            raise SourceError(f"{self._name}: {message}; name columns of its header")
        if not wanted and any(_is_number(cell) for cell in cells):
            return False
        self._header = cells
        self._choose(cells)
        return True

    def _choose(self, header: list[str]) -> None:
        names, time_column = self._request.names, self._request.time_column
        self._clock = None if time_column is None else header.index(time_column)
        others = [place for place in range(len(header)) if place != self._clock]
        self._columns = [header.index(name) for name in names] if names else others

    def _row(self, cells: list[str]) -> Row:
        if not self._by_name or self._header is None:
            return Row([self._value(cell) for cell in cells])
        if len(cells) != len(self._header):
            hint = self._hint(cells)
            raise BadRowError(f"it has {len(cells)} columns, the header {len(self._header)}{hint}")
        values = [self._value(cells[place]) for place in self._columns]
        return Row(values, None if self._clock is None else self._moment(cells[self._clock]))

    def _value(self, cell: str) -> float:
        dtype = self._request.input.dtype
        try:
            value = self._number(cell)
        except ValueError:
            raise BadRowError(f"{shown(cell)} is not a number of type {dtype}{self._hint([cell])}") from None
        if dtype == "int64" and abs(value) > _INT64_MAX:
            raise BadRowError(f"{shown(cell)} is too large for int64")
        # what is refused as NaN or Inf by the stream ends the run; rows that are left out do not
        if self._request.on_bad == "skip" and not (math.isfinite(value) and abs(value) <= _FLOAT32_MAX):
            raise BadRowError(f"{shown(cell)} is not finite")
        return value

    def _hint(self, cells: list[str]) -> str:
        """What may be wrong with cells that look like parts of ``0,5;1,5``, or ``0,5``; not with words."""
        marks = set(";\t" if self._separator == "," else ",")
        numbers = any(marks & set(cell) and _NUMERIC.issuperset(cell) for cell in cells)
        return "; write decimals with a point" if numbers else ""

    def _moment(self, cell: str) -> float:
        try:
            return moment_of(cell)
        except ValueError:
            raise BadRowError(f"{shown(cell)} is no time: seconds, or a date and time of ISO 8601") from None


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", cell) is not None


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """Rows from a pipe, or any byte stream."""
    return RowSource(name, stream, TableParser(name, request), request)


def open_file(path: Path, request: Request) -> Source:
    """Rows from a file."""
    check_path(path)
    source = open_stream(str(path), open_bytes(path), request)
    source.replayable = path.is_file()
    return source
