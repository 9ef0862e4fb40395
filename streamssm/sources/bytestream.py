"""Bytes as they come: from a file or a pipe, without waiting for more than there is."""

from __future__ import annotations

import io
from typing import BinaryIO

PIECE = 1 << 16


class ByteStream:
    """A file object with look-ahead, whose short reads are the caller's to use.

    ``consumed`` counts the bytes handed out. ``limit`` is how many :meth:`read` may still hand out:
    a wav header sets it to the size of the samples.
    """

    def __init__(self, file: BinaryIO | io.BufferedIOBase, *, owned: bool = True):
        self._file, self._owned = file, owned
        self._buffer = bytearray()
        self.limit: int | None = None
        self.ended = False
        self.consumed = 0

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

    def read_lines(self, most: int) -> list[bytes]:
        """One to ``most`` lines, as soon as one is complete; the last needs no newline; [] at the end."""
        while b"\n" not in self._buffer and self._fill():
            pass
        lines: list[bytes] = []
        while len(lines) < most and (end := self._buffer.find(b"\n")) >= 0:
            lines.append(bytes(self._buffer[:end]))
            self._drop(end + 1)
        if not lines and self._buffer:
            lines, self._buffer = [bytes(self._buffer)], bytearray()
        return lines

    def close(self) -> None:
        """Close the file below, unless it is another's."""
        if self._owned:
            self._file.close()

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self.consumed += count

    def _allowed(self, count: int) -> int:
        return count if self.limit is None else min(count, self.limit)

    def _fill(self) -> bool:
        if not self.ended:
            # read1 returns what is there: a live pipe is not made to fill a buffer first
            read = getattr(self._file, "read1", self._file.read)
            piece = read(PIECE)
            self._buffer += piece
            self.ended = not piece
        return not self.ended
