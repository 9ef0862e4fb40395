"""Rows written in a format, and readers of every one, from the formats' own descriptions."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from voice_toy import voice_toy

from streamssm.rows import EventRows
from streamssm.sinks import make_format

VOICE = voice_toy().manifest


class Span(NamedTuple):
    """An event; times in microseconds, ``record`` None where there are none."""

    record: str | None
    label: str
    start: int
    end: int


Gap = tuple[str, str]  # the reason, and the amount and place as the format gives them
_CLOCK = re.compile(r"(\d{2,}):(\d\d):(\d\d)[.,](\d{3})")


def spans(rows: list[dict[str, Any]]) -> list[Span]:
    """Pairs of event rows."""
    found, start = [], {}
    for row in rows:
        if row.get("event") == "start":
            start = row
        elif row.get("event") == "end":
            times = (round(r["time"] * 1e6) for r in (start, row))
            found.append(Span(start.get("record"), start["label"], *times))
    return found


def read_jsonl(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def read_csv(data: bytes) -> list[dict[str, Any]]:
    """Rows, with numbers and words of truth as such and empty cells left out."""
    lines = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
    return [{key: _value(key, text) for key, text in line.items() if text} for line in lines]


def _value(key: str, text: str) -> Any:
    if key in ("event", "label", "gap", "record", "text", "stopped"):
        return text
    return {"true": True, "false": False}.get(text) if text in ("true", "false") else json.loads(text)


def read_rttm(data: bytes) -> tuple[list[Span], list[str]]:
    """The events, with the recording as record, and the comments."""
    found, comments = [], []
    for line in data.decode().splitlines():
        if line.startswith(";;"):
            comments.append(line[3:])
            continue
        kind, record, channel, onset, duration, *rest = line.split(" ")
        assert (kind, channel, rest[:2], rest[3:]) == ("SPEAKER", "1", ["<NA>"] * 2, ["<NA>"] * 2)
        start, length = (round(float(text) * 1e6) for text in (onset, duration))
        found.append(Span(record, rest[2], start, start + length))
    return found, comments


def read_vtt(data: bytes) -> tuple[list[Span], list[str]]:
    """The cues and the notes."""
    head, *blocks, end = data.decode().split("\n\n")
    assert (head, end) == ("WEBVTT", "")
    notes = [html.unescape(block[5:]) for block in blocks if block.startswith("NOTE ")]
    return [_cue(block, ".") for block in blocks if not block.startswith("NOTE ")], notes


def read_srt(data: bytes) -> list[Span]:
    *blocks, end = data.decode().split("\n\n")
    assert end == ""
    numbers = [int(block.partition("\n")[0]) for block in blocks]
    assert numbers == list(range(1, len(blocks) + 1))
    return [_cue(block.partition("\n")[2], ",") for block in blocks]


def _cue(block: str, point: str) -> Span:
    times, text = block.split("\n")
    start, end = times.split(" --> ")
    text = html.unescape(text) if point == "." else text
    record, colon, label = text.rpartition(": ")
    return Span(record if colon else None, label, _microseconds(start), _microseconds(end))


def _microseconds(text: str) -> int:
    match = _CLOCK.fullmatch(text)
    assert match is not None, text
    hours, minutes, seconds, milliseconds = map(int, match.groups())
    return 1000 * (milliseconds + 1000 * (seconds + 60 * (minutes + 60 * hours)))


def read_labels(data: bytes) -> list[Span]:
    """A label track."""
    found = []
    for line in data.decode().splitlines():
        *record, start, end, label = line.split("\t")
        times = (round(float(text) * 1e6) for text in (start, end))
        found.append(Span(record[0] if record else None, label, *times))
    return found


def read_parquet(data: bytes) -> list[dict[str, Any]]:
    """Rows without what they lack."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(data))
    return [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]


def make(name, rows=None, manifest=VOICE, uri="talk.wav"):
    return make_format(name, Path("x"), manifest, rows or EventRows(manifest), uri)


def write(sink, pieces):
    """The whole output, and a file that was finished."""
    data = sink.begin() + b"".join(sink.rows(piece) for piece in pieces) + sink.end()
    file = io.BytesIO(data)
    sink.finish(file)
    return file.getvalue()
