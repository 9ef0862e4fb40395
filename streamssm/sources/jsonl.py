"""JSON lines: a line holds an item, or several.

An item is a list of numbers, or a single number; an object gives it as ``"x"`` (or the name of the model's
input), or each number by name: ``--columns`` says which and in which order, else those of the first object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamssm.errors import UsageError
from streamssm.sources.base import Request, Source, check_path
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.gz import open_bytes
from streamssm.sources.rows import BadRowError, Row, RowSource

SUFFIXES = (".jsonl", ".ndjson", ".json")


class JsonParser:
    """Lines of JSON, read as messages are."""

    def __init__(self, name: str, request: Request):
        from streamssm.live.messages import MessageReader  # live sources are registered beside this one

        if request.channel is not None and request.channels is None:
            raise UsageError(
                f"--channel {request.channel}: pick a column of JSON lines by name, with --columns"
            )
        channels = request.columns if request.channels is None else request.channels
        self._reader = MessageReader(name, request, channels)
        self._period = 0.0 if request.input.rate is None else 1 / request.input.rate
        self._time_column = request.time_column

    def parse(self, line: bytes) -> Sequence[Row]:
        """The rows of a line."""
        if not line.strip():
            return ()
        message = self._reader.read_json(line.removeprefix(b"\xef\xbb\xbf"))
        if message.frames is None:
            raise BadRowError(message.fault, message.place.frames or 1)
        rows: list[list[float]] = message.frames.tolist()
        if self._time_column is None:
            return [Row(row) for row in rows]
        moment = message.place.moment
        if moment is None:
            raise BadRowError(f"{self._time_column!r} is missing", len(rows))
        return [Row(row, moment + place * self._period) for place, row in enumerate(rows)]


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """Rows from a pipe, or any byte stream."""
    return RowSource(name, stream, JsonParser(name, request), request)


def open_file(path: Path, request: Request) -> Source:
    """Rows from a file."""
    check_path(path)
    stream = open_bytes(path)
    source = open_stream(str(path), stream, request)
    source.replayable = path.is_file()
    return source
