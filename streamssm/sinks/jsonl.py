"""A line of JSON for each row."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from streamssm.rows.base import Row
from streamssm.sinks.base import Format, speakable


class JsonLines(Format):
    """The rows as they are. NaN and Inf become null: JSON has no such numbers."""

    name = "jsonl"

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def rows(self, rows: Sequence[Row]) -> bytes:
        """One line each."""
        return b"".join([self._line(row) for row in rows])

    def _line(self, row: Row) -> bytes:
        try:
            return self._encoder.encode(row) + b"\n"
        except UnicodeEncodeError:
            return self._encoder.encode(speakable(row)) + b"\n"
