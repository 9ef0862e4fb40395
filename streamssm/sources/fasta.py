"""FASTA and FASTQ, read as they come: names, and the letters of one sequence after the other."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from streamssm.errors import SourceError
from streamssm.sources.bytestream import ByteStream

_WHITE = b" \t\r\n\v\f"
_LONGEST = 1 << 28  # letters of a FASTQ read, which is held whole


class BadReadError(Exception):
    """A read cannot be used; the next one may be."""


class ReadParser(Protocol):
    """Goes from sequence to sequence."""

    def start(self) -> str | None:
        """Go to the next sequence, its name; None at the end.

        Raises:
            BadReadError: it is damaged; a further call goes to the one after it.
            SourceError: nothing more can be read.
        """

    def letters(self, count: int) -> bytes:
        """One to ``count`` letters of it, as soon as there are any; b"" at its end."""

    def close(self) -> None:
        """Close the file."""


class FastaParser:
    """``>name`` and lines of letters. A sequence is never held whole, be it a chromosome on one line."""

    def __init__(self, name: str, stream: ByteStream):
        self._name, self._stream = name, stream
        self._line_start = True
        self._number = 0

    def start(self) -> str | None:
        """The next header; what stands before it is the rest of the sequence before."""
        while self.letters(1 << 16):
            pass
        if not self._stream.peek(1):
            return None
        self._number += 1
        return name_of(self._stream.read_lines(1)[0], self._number)

    def letters(self, count: int) -> bytes:
        """Letters of the sequence, up to the next header."""
        while not (self._line_start and self._stream.peek(1) == b">"):
            part = self._stream.read_part(count)
            if not part:
                break
            letters = part.translate(None, _WHITE)
            if letters and not self._number:
                raise SourceError(f"{self._name} does not start like FASTA, with >; see --input-format")
            self._line_start = part.endswith(b"\n")
            if letters:
                return letters
        return b""

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


class FastqParser:
    """Four lines a read: ``@name``, letters, ``+``, as many qualities."""

    def __init__(self, name: str, stream: ByteStream):
        self._name, self._stream = name, stream
        self._ahead: deque[bytes] = deque()
        self._number = self._line = 0
        self._letters = b""
        self._bad = False  # the next read has to be searched

    def start(self) -> str | None:
        """The next read; after a damaged one, the next four lines that look like one."""
        while self._look(1) and (self._bad or not self._ahead[0].strip()):
            if self._bad and self._is_read():
                break
            self._next_line()
        self._bad, self._letters = False, b""
        if not self._look(1):
            return None
        self._number += 1
        return self._take()

    def letters(self, count: int) -> bytes:
        """The next letters of the read."""
        letters, self._letters = self._letters[:count], self._letters[count:]
        return letters

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def _take(self) -> str:
        where = f"{self._name}: read {self._number}, line {self._line + 1}"
        if not self._ahead[0].startswith(b"@"):
            raise self._damaged(f"{where}: @ is due, there is {self._ahead[0][:20]!r}")
        if not self._look(4):
            self._ahead.clear()
            raise SourceError(f"{where} is truncated: the file ends inside it; copy it again")
        if not self._ahead[2].startswith(b"+"):
            raise self._damaged(f"{where}: + is due two lines on, there is {self._ahead[2][:20]!r}")
        header, letters, _, qualities = (self._next_line().strip(_WHITE) for _ in range(4))
        if len(letters) != len(qualities):
            self._bad = True
            raise BadReadError(f"{where}: {len(letters)} letters have {len(qualities)} qualities")
        self._letters = letters.translate(None, _WHITE)
        return name_of(header, self._number)

    def _damaged(self, message: str) -> BadReadError:
        self._bad = True
        self._next_line()  # so that the search gets on
        return BadReadError(message)

    def _is_read(self) -> bool:
        """Whether a read starts here; a line of qualities may start with @ as well."""
        return self._look(3) and self._ahead[0].startswith(b"@") and self._ahead[2].startswith(b"+")

    def _look(self, count: int) -> bool:
        while len(self._ahead) < count:
            lines = self._stream.read_lines(1, _LONGEST)
            if not lines:
                return False
            self._ahead.extend(lines)
        return True

    def _next_line(self) -> bytes:
        self._line += 1
        return self._ahead.popleft()


def name_of(header: bytes, number: int) -> str:
    """The first word of a header without its mark; the number of the read where there is none."""
    words = header[1:].decode("utf-8", "replace").split(None, 1)
    return words[0] if words else str(number)
