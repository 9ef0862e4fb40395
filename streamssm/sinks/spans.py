"""Formats that write an event once, with its start and its end: an open event waits for its end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from streamssm.errors import SnapshotError, UsageError
from streamssm.rows.base import Row, Rows
from streamssm.sinks.base import Format

MICROSECONDS = 1_000_000


class SpanFormat(Format):
    """Joins the start and the end of an event. Where the stream is saved in the middle of one, the start is
    part of the state, and the event is in the output that has its end."""

    def __init__(self) -> None:
        self._open: Row | None = None

    def rows(self, rows: Sequence[Row]) -> bytes:
        """The events that these rows end, and the gaps among them."""
        return "".join([self._take(row) for row in rows]).encode()

    @abstractmethod
    def span(self, start: Row, end: Row) -> str:
        """An event as text."""

    def gap(self, row: Row) -> str:
        """A gap as text, where the format has comments."""
        return ""

    def state(self) -> dict[str, Any]:
        """The open event."""
        return super().state() | {"open": self._open}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of an event.

        Raises:
            SnapshotError: the state is of another format, or damaged.
        """
        super().restore(state)
        start = state.get("open")
        if start is not None and not (isinstance(start, dict) and "label" in start):
            raise SnapshotError(f"the state's open event {start!r} is not one; save it again")
        self._open = start

    def _take(self, row: Row) -> str:
        if "gap" in row:
            return self.gap(row)
        if row["event"] == "start":
            self._open = row
            return ""
        start, self._open = self._open, None
        if start is None:
            raise SnapshotError(
                f"an event ends at {row.get('time', row['index'])}, and the saved state does not say where "
                f"it began, which {self.name} needs; use the --format it was saved with, or jsonl"
            )
        return self.span(start, row)


def require_events(name: str, rows: Rows, clock: bool = True) -> None:
    """Refuse rows that are not events, or have no times where the format needs them.

    Raises:
        UsageError: they are not, or have none.
    """
    if rows.kind != "events":
        raise UsageError(
            f"{name} holds events with a start and an end, not {rows.kind}; "
            "use --format jsonl, csv or parquet"
        )
    if clock and "time" not in [column.name for column in rows.columns]:
        raise UsageError(f"{name} holds times, but the model's input has no rate; use --format jsonl or csv")


def microseconds(row: Row) -> int:
    """When it is, exactly: rows give seconds rounded to microseconds."""
    return round(float(row["time"]) * MICROSECONDS)


def decimal(time: int) -> str:
    """Microseconds as seconds with three decimals, or with six where the time needs them."""
    whole, rest = divmod(time, MICROSECONDS)
    return f"{whole}.{rest:06d}" if rest % 1000 else f"{whole}.{rest // 1000:03d}"


def clock_time(time: int, point: str) -> str:
    """Microseconds as hours, minutes, seconds and milliseconds, rounded; ``point`` parts the last two."""
    seconds, milliseconds = divmod((time + 500) // 1000, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{milliseconds:03d}"


def one_line(text: str) -> str:
    """Text without line breaks, tabs and other control characters, which would end a field or a line."""
    if text and text.isprintable():
        return text
    text = text.encode(errors="backslashreplace").decode()  # what is no Unicode
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split()) or "-"


def title(row: Row) -> str:
    """What a viewer is shown: the label, after the name of the record if there are several."""
    label = one_line(row["label"])
    return f"{one_line(row['record'])}: {label}" if "record" in row else label


def gap_text(row: Row) -> str:
    """A gap for people."""
    amounts = [f" {row['items']} items" if row.get("items") is not None else ""]
    amounts.append(f" {row['seconds']:g} s" if row.get("seconds") is not None else "")
    where = f"{row['time']:g} s" if "time" in row else f"item {row.get('index', 0)}"
    return f"gap: {row['gap']}{''.join(amounts)} at {where}"
