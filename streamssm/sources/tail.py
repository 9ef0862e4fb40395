"""``tail:FILE``: a file that grows, from its beginning and then as it is written to, until a signal.

When another file takes its name (log rotation) the old one is read to its end and then the new one from
its beginning; when the file becomes shorter than what was read, it is read from its beginning again. What
a writer puts between two looks at a file that it cuts to nothing and fills beyond the old length
cannot be seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from streamssm import waiting
from streamssm.errors import SourceError, UsageError
from streamssm.sources import jsonl, raw, table, text
from streamssm.sources.base import Request, Source, check_names, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream

_WAIT = 0.05  # seconds between looks
_LINES = {"csv": table.open_stream, "json": jsonl.open_stream, "jsonl": jsonl.open_stream}
_OPENERS: dict[str, Callable[[str, ByteStream, Request], Source]] = {
    **_LINES,
    "bytes": text.open_stream,
    "text": text.open_stream,
    **dict.fromkeys(raw.ENCODINGS, raw.open_stream),
}


class Follower:
    """A file object whose end is not the end: it waits there for more.

    With ``lines`` a line that was begun in one file does not go on in the next. ``source`` is told once it is
    no longer one file.
    """

    source: Source | None = None

    def __init__(self, path: Path, lines: bool, sleep: Callable[[float], None] = waiting.sleep):
        self._path, self._lines, self._sleep = path, lines, sleep
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._in_line = False

    def read1(self, count: int) -> bytes:
        """The next bytes; waits as long as there are none."""
        while not (data := self._file.read(count)):
            again = self._moved()
            if again is None:
                self._sleep(_WAIT)
            elif again:
                data = again
                break
        self._in_line = not data.endswith(b"\n")
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _moved(self) -> bytes | None:
        """Go to the beginning of what has the file's name now. None if that is where we are; else the bytes
        to put before it."""
        try:
            found = os.stat(self._path)
        except OSError:  # between the old file and the new
            return None
        here = os.fstat(self._file.fileno())
        if not os.path.samestat(found, here):
            if rest := self._file.read():  # written just before it was moved
                return rest
            try:
                file = self._path.open("rb", buffering=0)
            except OSError:
                return None
            self._file.close()
            self._file = file
        elif here.st_size < self._file.tell():
            self._file.seek(0)
        else:
            return None
        if self.source is not None:
            self.source.grows = False
        return b"\n" if self._lines and self._in_line else b""


def open_tail(path: str, request: Request) -> Source:
    """The source ``tail:FILE``.

    Raises:
        SourceError: there is no such file, or nothing that could be followed.
        UsageError: the format cannot be followed.
    """
    place = Path(path)
    name = request.format if request.format != "auto" else _guess(place, request)
    check_names(name, request)
    if name not in _OPENERS:
        raise UsageError(
            f"tail: cannot follow {name} ({path}): it has an end of its own; use {', '.join(_OPENERS)}"
        )
    if not place.is_file():
        check_path(place)
        raise SourceError(f"{path} is no regular file; name it without tail:")
    follower = _follow(place, name in _LINES)
    with closed_on_error(follower):
        source = _OPENERS[name](f"tail:{path}", ByteStream(follower), request.with_format(name))
        source.grows, follower.source = True, source
        return source


def _follow(path: Path, lines: bool) -> Follower:
    try:
        return Follower(path, lines)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _guess(path: Path, request: Request) -> str:
    if text.takes_text(request):
        return "text"
    if request.input.kind == "samples":
        raise UsageError(f"tail: of raw samples needs --input-format s16le or f32le to follow {path}")
    return "jsonl" if path.suffix.lower() in jsonl.SUFFIXES else "csv"
