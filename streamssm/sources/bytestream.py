"""Bytes as they come: from a file or a pipe, without waiting for more than there is."""

from __future__ import annotations

import io
from typing import Any

from streamssm import waiting

PIECE = 1 << 16
LINE = 1 << 20  # bytes of the longest line that is kept whole


class ByteStream:
    """A file object with look-ahead, whose short reads are the caller's to use.

    ``consumed`` counts the bytes handed out. ``limit`` is how many :meth:`read` may still hand out:
    a wav header sets it to the size of the samples.
    """

    def __init__(self, file: Any, *, owned: bool = True):
        self._file, self._owned = file, owned
        self._buffer = bytearray()
        self.limit: int | None = None
        self.ended = False
        self.consumed = 0
        self._dropping = False  # inside a line that was too long

    @property
    def below(self) -> Any:
        """The file object: it has ``read1`` or ``read``, and ``close``."""
        return self._file

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, left in place; fewer only at the end."""
        while len(self._buffer) < count and self._fill():
            pass
        return bytes(self._buffer[:count])

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer only at the end."""
        data = self.peek(count)
        self._drop(len(data))
        return data

    def read(self, unit: int, most: int) -> bytes:
        """One to ``most`` units of ``unit`` bytes, as soon as one is complete; a part of one at the end."""
        whole = min(unit, self._allowed(unit))
        while len(self._buffer) < whole and self._fill():
            pass
        have = min(len(self._buffer), self._allowed(unit * most))
        data = bytes(self._buffer[: have - have % unit if have >= unit else have])
        self._drop(len(data))
        if self.limit is not None:
            self.limit -= len(data)
        return data

    def read_lines(self, most: int, longest: int = LINE) -> list[bytes]:
        """One to ``most`` lines, as soon as one is complete; the last needs no newline; [] at the end.

        A line of more than ``longest`` bytes is given as its first ``longest + 1``: what has no lines at
        all cannot fill the memory.
        """
        lines: list[bytes] = []
        while not lines and self._find_line(longest):
            while len(lines) < most and (end := self._buffer.find(b"\n")) >= 0:
                self._add_line(lines, end, end + 1, longest)
            if not lines and self._buffer and (self.ended or len(self._buffer) > longest):
                self._add_line(lines, len(self._buffer), len(self._buffer), longest)
                self._dropping = not self.ended
        return lines

    def read_part(self, most: int) -> bytes:
        """Up to ``most`` bytes of one line with its newline, as soon as there are any; b"" at the end."""
        self.peek(1)
        end = self._buffer.find(b"\n", 0, most) + 1
        data = bytes(self._buffer[: end or most])
        self._drop(len(data))
        return data

    def leap(self, count: int) -> int:
        """Leave out ``count`` bytes of a file without reading them; how many could be left out so."""
        if not self._owned or not self._file.seekable():
            return 0
        buffered = min(count, len(self._buffer))
        self._drop(buffered)
        self._file.seek(count - buffered, io.SEEK_CUR)
        self.consumed += count - buffered
        if self.limit is not None:
            self.limit -= count
        return count

    def close(self) -> None:
        """Close the file below, unless it is another's."""
        if self._owned:
            self._file.close()

    def _find_line(self, longest: int) -> bool:
        """Wait for the end of a line, or for too much of one; False at the end of everything."""
        seen = 0
        while self._buffer.find(b"\n", seen) < 0 and len(self._buffer) <= longest:
            seen = len(self._buffer)
            if not self._fill():
                return bool(self._buffer)
        return True

    def _add_line(self, lines: list[bytes], end: int, after: int, longest: int) -> None:
        if not self._dropping:
            lines.append(bytes(self._buffer[: min(end, longest + 1)]))
        self._dropping = False
        self._drop(after)

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self.consumed += count

    def _allowed(self, count: int) -> int:
        return count if self.limit is None else min(count, self.limit)

    def _fill(self) -> bool:
        if not self.ended:
            waiting.readable(self._file)  # a request to stop leaves here, with nothing taken
            # read1 returns what is there: a live pipe is not made to fill a buffer first
            read = getattr(self._file, "read1", None) or self._file.read
            piece = read(PIECE)
            self._buffer += piece
            self.ended = not piece
        return not self.ended
