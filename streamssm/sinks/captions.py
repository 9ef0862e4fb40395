"""Captions that players show: WebVTT and SubRip.

Source: W3C, WebVTT: The Web Video Text Tracks Format, sections 4 and 6. SubRip has no standard; this is
what players agree on. Both have times in milliseconds; finer ones are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamssm.errors import SnapshotError
from streamssm.rows.base import Row, Rows
from streamssm.sinks.spans import (
    SpanFormat,
    clock_time,
    gap_text,
    microseconds,
    one_line,
    require_events,
    title,
)


class WebVtt(SpanFormat):
    """A cue for each event; gaps are notes."""

    name = "vtt"

    def __init__(self, rows: Rows):
        super().__init__()
        require_events(self.name, rows)

    def begin(self) -> bytes:
        """The line that says what it is."""
        return b"WEBVTT\n\n"

    def span(self, start: Row, end: Row) -> str:
        """Times and text."""
        return f"{_times(start, end, '.')}\n{_escaped(title(start))}\n\n"

    def gap(self, row: Row) -> str:
        """A note."""
        return f"NOTE {_escaped(one_line(gap_text(row)))}\n\n"


class SubRip(SpanFormat):
    """A numbered caption for each event; gaps are left out, for a player would show them."""

    name = "srt"

    def __init__(self, rows: Rows):
        super().__init__()
        require_events(self.name, rows)
        self._number = 0

    def begin(self) -> bytes:
        """Numbers begin with 1 in each output."""
        self._number = 0
        return b""

    def span(self, start: Row, end: Row) -> str:
        """Number, times and text."""
        self._number += 1
        return f"{self._number}\n{_times(start, end, ',')}\n{title(start)}\n\n"

    def state(self) -> dict[str, Any]:
        """The open event, and the last number."""
        return super().state() | {"number": self._number}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the next number.

        Raises:
            SnapshotError: the state is of another format, or damaged.
        """
        number = state.get("number")
        if state.get("format") == self.name and not isinstance(number, int):
            raise SnapshotError(f"the state's caption number {number!r} is none; save it again")
        super().restore(state)
        self._number = int(number or 0)


def _times(start: Row, end: Row, point: str) -> str:
    return f"{clock_time(microseconds(start), point)} --> {clock_time(microseconds(end), point)}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
