"""Rows as a table with one header: comma-separated values, or plain text with tabs and no header.

Source of the quoting: RFC 4180; lines end with a line feed, as Unix tools and data frames like them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

from streamssm.errors import SnapshotError
from streamssm.manifest import Manifest
from streamssm.rows.base import Column, Row, Rows
from streamssm.sinks.base import RECORD, Format, check_columns, table_columns
from streamssm.sinks.spans import one_line


class Csv(Format):
    """A line for each row. What a row does not have is empty; true and false are words; an output with a
    shape has a column for each of its numbers, ``y.0``, ``y.1``.

    The header comes with the first row, which tells whether rows have records.
    """

    name = "csv"

    def __init__(self, manifest: Manifest, rows: Rows):
        self._columns = table_columns(manifest, rows)
        self._records: bool | None = None  # None before the header

    def begin(self) -> bytes:
        """Nothing yet; a header is due again."""
        self._records = None
        return b""

    def rows(self, rows: Sequence[Row]) -> bytes:
        """A line each."""
        if not rows:
            return b""
        head = list(self._header("record" in rows[0]))
        check_columns(self._all(), rows)
        return "".join([*head, *map(self._line, rows)]).encode(errors="backslashreplace")

    def end(self) -> bytes:
        """The header, if there were no rows."""
        return "".join(self._header(records=False)).encode()

    def state(self) -> dict[str, Any]:
        """Whether there is a header, and which one."""
        return super().state() | {"records": self._records}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue below the header.

        Raises:
            SnapshotError: the state is of another format, or damaged.
        """
        super().restore(state)
        records = state.get("records")
        if records not in (None, True, False):
            raise SnapshotError(f"the state's header {records!r} is none; save it again")
        self._records = records

    def _header(self, records: bool) -> Iterator[str]:
        if self._records is None:
            self._records = records
            yield ",".join(map(_quoted, chain.from_iterable(map(names, self._all())))) + "\n"

    def _all(self) -> Sequence[Column]:
        return (RECORD, *self._columns) if self._records else self._columns

    def _line(self, row: Row) -> str:
        columns = self._all()
        return ",".join([_cell(value) for column in columns for value in values(column, row)]) + "\n"


class TabText(Format):
    """The numbers of a row parted by tabs, a line each, without a header; gaps are left out.

    A number that a row does not have is ``nan``.
    """

    name = "txt"

    def __init__(self, rows: Rows):
        self._columns = tuple(rows.columns)

    def rows(self, rows: Sequence[Row]) -> bytes:
        """A line each."""
        return "".join([self._line(row) for row in rows if "gap" not in row]).encode(
            errors="backslashreplace"
        )

    def _line(self, row: Row) -> str:
        columns = (RECORD, *self._columns) if "record" in row else self._columns
        return "\t".join([_word(v, column) for column in columns for v in values(column, row)]) + "\n"


def names(column: Column) -> list[str]:
    """The column's name, or one for each number of its shape."""
    places = product(*map(range, column.shape))
    return [".".join([column.name, *map(str, place)]) for place in places]


def values(column: Column, row: Row) -> list[Any]:
    """What the row has in the column: as many values as :func:`names`, None for those it lacks."""
    value = row.get(column.name)
    if not column.shape:
        return [value]
    if value is None:
        return [None] * len(names(column))
    for _ in column.shape[1:]:
        value = list(chain.from_iterable(value))
    return list(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """In quotes where it must be; an empty text too, which is not a missing one."""
    if text and not set(text) & set(',"\r\n') and text == text.strip():
        return text
    return '"' + text.replace('"', '""') + '"'


def _word(value: Any, column: Column) -> str:
    if value is None:
        return "-" if column.kind in ("text", "flag") else "nan"
    return one_line(value) if isinstance(value, str) else _cell(value)
