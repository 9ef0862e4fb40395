"""Rows of numbers as text: one item a line, columns by comma, semicolon, tab or space.

A first line that is not numbers is a header; empty lines and lines that start with # are skipped.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Array, Request, Source, channel_map, check_declared_rate, check_path
from streamssm.sources.bytestream import ByteStream


class TableSource(Source):
    """Items parsed from lines. The first row decides the separator and the number of columns."""

    def __init__(self, name: str, stream: ByteStream, request: Request):
        self.name = name
        self._stream, self._request = stream, request
        self._number = float if request.input.dtype == "float32" else int
        self._separator: str | None = None
        self._columns = 0  # unknown until the first row
        self._line = 0
        self._started = False

    def read(self, count: int) -> Array:
        """The next rows; a line that is not a row of numbers is refused with its number."""
        rows: list[list[float]] = []
        while not rows and (lines := self._stream.read_lines(count)):
            rows = [row for line in lines if (row := self._row(line))]
        if not self._columns:
            raise SourceError(f"{self.name} holds no rows of numbers; there is nothing to push")
        to_items = channel_map(self.name, self._columns, self._request, "columns")
        with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which the stream refuses
            try:
                block = np.array(rows, self._request.input.dtype)
            except OverflowError as error:
                raise SourceError(f"{self.name} line {self._line} or before: {error}; correct it") from error
        return to_items(block.reshape(len(rows), self._columns))

    def close(self) -> None:
        """Close the byte stream."""
        self._stream.close()

    def _row(self, line: bytes) -> list[float]:
        self._line += 1
        text = line.decode("utf-8", "replace").strip("\ufeff\r\n ")
        if not text or text.startswith("#"):
            return []
        first, self._started = not self._started, True
        if first:
            self._separator = next((mark for mark in ",;\t" if mark in text), None)
        cells = [cell.strip(' "') for cell in text.split(self._separator)]
        try:
            row = [self._number(cell) for cell in cells]
        except ValueError as error:
            if first and not any(_is_number(cell) for cell in cells):
                return []  # a header
            bad = next(cell for cell in cells if not _fits(cell, self._number))
            raise SourceError(
                f"{self.name} line {self._line}: {bad[:40]!r} is not a number of type "
                f"{self._request.input.dtype}; correct the line"
            ) from error
        self._columns = self._columns or len(row)
        if len(row) != self._columns:
            raise SourceError(
                f"{self.name} line {self._line} has {len(row)} columns, the lines before {self._columns}"
            )
        return row


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", cell) is not None


def _fits(cell: str, number: type[int] | type[float]) -> bool:
    try:
        number(cell)
    except ValueError:
        return False
    return True


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """Rows from a pipe, or any byte stream."""
    check_declared_rate(name, request)
    return TableSource(name, stream, request)


def open_file(path: Path, request: Request) -> Source:
    """Rows from a file."""
    check_path(path)
    return open_stream(str(path), ByteStream(path.open("rb")), request)
