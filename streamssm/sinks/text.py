"""Plain text: labels with their times, or the text that a model of tokens reads or writes."""

from __future__ import annotations

from collections.abc import Sequence

from streamssm.rows.base import Row, Rows
from streamssm.sinks.base import Format
from streamssm.sinks.spans import SpanFormat, decimal, microseconds, one_line, require_events


class LabelTrack(SpanFormat):
    """``start<TAB>end<TAB>label``, a line for each event, which Audacity imports as a label track.

    Where there are records, their name comes before. Without a clock the numbers are those of the items. Gaps
    are left out.
    """

    name = "txt"

    def __init__(self, rows: Rows):
        super().__init__()
        require_events(self.name, rows, clock=False)

    def span(self, start: Row, end: Row) -> str:
        """One line."""
        record = [one_line(start["record"])] if "record" in start else []
        return "\t".join([*record, _position(start), _position(end), one_line(start["label"])]) + "\n"


class PlainText(Format):
    """The text of the tokens, one after the other, and nothing else."""

    name = "txt"

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Their text; of the last row of a continuation, the rest of it."""
        return "".join([row.get("text") or row.get("rest") or "" for row in rows]).encode(
            errors="backslashreplace"
        )


def _position(row: Row) -> str:
    return decimal(microseconds(row)) if "time" in row else str(row["index"])
