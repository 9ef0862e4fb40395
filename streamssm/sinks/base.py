"""What every format shares: rows in, bytes out, and a state, so that a file is continued where it was cut.

The bytes of all calls, one after the other, are the file, and depend on the rows alone, not on how they were
dealt out to calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, ClassVar

from streamssm.errors import OutputError, SnapshotError
from streamssm.manifest import Manifest
from streamssm.rows.base import Column, Row, Rows

RECORD = Column("record", "text")  # the first key of rows from a source of several sequences
_GAP = (Column("gap", "text"), Column("items", "integer"), Column("seconds", "number"))


def table_columns(manifest: Manifest, rows: Rows) -> tuple[Column, ...]:
    """The columns of a table of ``rows``: their own, and those of the rows that the loop writes where items
    of a source were lost, with the place by the model's clock or else by number."""
    where = Column("index", "integer") if manifest.input.rate is None else Column("time", "number")
    extra = () if where.name in [column.name for column in rows.columns] else (where,)
    return (*rows.columns, *extra, *_GAP)


def check_columns(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Refuse rows with a key that is no column.

    Raises:
        OutputError: there is one.
    """
    other = set().union(*rows) - {column.name for column in columns}
    if other:
        raise OutputError(f"the table has no column for {', '.join(sorted(other))}; use --format jsonl")


def speakable(row: Row) -> Row:
    """The row without what is no Unicode: a record may be called after a file whose name is just bytes."""
    return {
        key: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for key, value in row.items()
    }


class Format(ABC):
    """Writes rows down. The order of calls: ``restore`` to go on with saved rows; ``begin`` unless the bytes
    continue an output that has its beginning; ``rows`` any number of times; ``end`` once, when no more rows
    come to this output, also where the stream is saved to go on in another; then ``finish`` if the output is
    a file.

    ``appendable`` says whether a file cut at any :meth:`state` can be continued from it. ``binary`` bytes
    are not for a terminal.
    """

    name: ClassVar[str]
    appendable: ClassVar[bool] = True
    binary: ClassVar[bool] = False

    def begin(self) -> bytes:
        """The head of a new output."""
        return b""

    @abstractmethod
    def rows(self, rows: Sequence[Row]) -> bytes:
        """These rows, as far as they are complete; gap rows among them."""

    def end(self) -> bytes:
        """The tail of the output."""
        return b""

    def state(self) -> dict[str, Any]:
        """What is remembered between calls, as plain data."""
        return {"format": self.name}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            SnapshotError: it is of another format.
        """
        if state.get("format") != self.name:
            before = state.get("format", "another format")
            raise SnapshotError(
                f"the state was saved while {before} was written, not {self.name}; use the same --format"
            )

    def finish(self, file: BinaryIO) -> None:
        """Correct, in a complete file that can seek, what only the end could tell."""
        return
