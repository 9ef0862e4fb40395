"""Rich Transcription Time Marked: a line for each event.

Source: NIST, The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan, appendix A.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from urllib.parse import urlsplit

from streamssm.rows.base import Row, Rows
from streamssm.sinks.spans import SpanFormat, decimal, gap_text, microseconds, one_line, require_events

_SUFFIX = re.compile(r"(?<=[^/])\.[A-Za-z][A-Za-z0-9]{1,4}$")  # of a file; not the end of "read.17"


class Rttm(SpanFormat):
    """``SPEAKER recording 1 onset duration <NA> <NA> label <NA> <NA>``; gaps are comments.

    The recording is the record, or what the source is called, without the suffix of a file; white space in
    names becomes ``_``.
    """

    name = "rttm"

    def __init__(self, rows: Rows, uri: str):
        super().__init__()
        require_events(self.name, rows)
        self._recording = recording_name(uri)

    def span(self, start: Row, end: Row) -> str:
        """One line."""
        onset = microseconds(start)
        times = f"{decimal(onset)} {decimal(microseconds(end) - onset)}"
        recording = _SUFFIX.sub("", start["record"]) if "record" in start else self._recording
        return f"SPEAKER {_word(recording)} 1 {times} <NA> <NA> {_word(start['label'])} <NA> <NA>\n"

    def gap(self, row: Row) -> str:
        """A comment."""
        return f";; {one_line(gap_text(row))}\n"


def recording_name(uri: str) -> str:
    """What to call a source: the name of a file without its suffix, the last part of an address.

    Never the user or the password that an address may hold.
    """
    if uri == "-":
        return "stdin"
    if "://" in uri:
        parts = urlsplit(uri)
        return parts.path.rstrip("/").rpartition("/")[2] or parts.hostname or parts.scheme
    return PurePath(uri.removeprefix("sim:").removeprefix("file:").removeprefix("tail:")).stem or "stream"


def _word(text: str) -> str:
    return "_".join(one_line(text).split()) or "-"
