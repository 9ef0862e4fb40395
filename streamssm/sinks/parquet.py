"""Apache Parquet: a compressed table by columns, for data frames and databases."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from streamssm.errors import OutputError
from streamssm.manifest import Manifest
from streamssm.rows.base import Column, Row, Rows
from streamssm.sinks.base import RECORD, Format, check_columns, speakable, table_columns

_CELLS = 1 << 18  # of a row group, which is held in memory until it is full


class Parquet(Format):
    """Row groups as they fill up. The file can be read once it is complete: its table of contents comes last.

    Values are float32, times float64; an output with a shape is a list; gaps are rows.

    Raises:
        OutputError: pyarrow is not installed.
    """

    name = "parquet"
    appendable = False
    binary = True

    def __init__(self, manifest: Manifest, rows: Rows):
        try:
            self._arrow = import_module("pyarrow")
            self._parquet = import_module("pyarrow.parquet")
        except ImportError as error:
            raise OutputError(
                "--format parquet needs pyarrow; pip install 'streamssm[parquet]', or use --format csv"
            ) from error
        self._columns = table_columns(manifest, rows)
        self._group = max(1, _CELLS // sum(math.prod(column.shape) or 1 for column in self._columns))
        self._waiting: list[Row] = []
        self._sink = _Sink()
        self._writer: Any = None  # its columns depend on the first row

    def rows(self, rows: Sequence[Row]) -> bytes:
        """The row groups that are full."""
        self._waiting.extend(rows)
        while len(self._waiting) >= self._group:
            self._write(self._waiting[: self._group])
            del self._waiting[: self._group]
        return self._sink.take()

    def end(self) -> bytes:
        """The last row group, and the table of contents."""
        self._write(self._waiting)
        self._waiting = []
        self._writer.close()
        return self._sink.take()

    def _write(self, rows: list[Row]) -> None:
        if self._writer is None:
            if rows and "record" in rows[0]:
                self._columns = (RECORD, *self._columns)
            schema = self._arrow.schema([(column.name, self._type(column)) for column in self._columns])
            self._writer = self._parquet.ParquetWriter(self._sink, schema, compression="zstd")
        if rows:
            check_columns(self._columns, rows)
            clean = [speakable(row) for row in rows]
            self._writer.write_table(self._arrow.Table.from_pylist(clean, self._writer.schema), len(rows))

    def _type(self, column: Column) -> Any:
        arrow = self._arrow
        kinds = {
            "text": arrow.string,
            "integer": arrow.int64,
            "number": arrow.float64,
            "value": arrow.float32,
            "flag": arrow.bool_,
        }
        kind = kinds[column.kind]()
        for _ in column.shape:
            kind = arrow.list_(kind)
        return kind


class _Sink(io.RawIOBase):
    """Collects what a writer writes, to be taken away piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._data, self._taken = bytearray(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(memoryview(data).cast("B"))

    def tell(self) -> int:
        return self._taken + len(self._data)

    def take(self) -> bytes:
        """All of it, once."""
        data = bytes(self._data)
        self._taken += len(data)
        self._data.clear()
        return data
