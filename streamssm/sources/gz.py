"""Files compressed with gzip, bgzip or the like: inflated as they come, from files and pipes."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from streamssm.errors import SourceError
from streamssm.sources.bytestream import PIECE, ByteStream

MAGIC = b"\x1f\x8b"
SUFFIXES = (".gz", ".bgz")
_GZIP = 16 + zlib.MAX_WBITS


class Inflated:
    """A file object of what gzip members, one after the other, hold; never more than a piece at a time.

    ``ends_empty`` says whether the latest member held nothing: the mark that ends a BAM file.
    """

    def __init__(self, name: str, stream: ByteStream):
        self._name, self._stream = name, stream
        self._member: Any = None
        self._data = b""
        self.ends_empty = False

    def read1(self, count: int) -> bytes:
        """The next bytes; b"" at the end.

        Raises:
            SourceError: damaged or truncated; all bytes before were given.
        """
        while self._member is not None or self._begin():
            if not self._data:
                self._data = self._stream.read(1, PIECE)
                if not self._data and not self._member.unconsumed_tail:
                    raise SourceError(
                        f"{self._name} is truncated: it ends inside compressed data; copy it again"
                    )
            if inflated := self._inflate(count):
                return inflated
        return b""

    def close(self) -> None:
        """Close the compressed stream."""
        self._stream.close()

    def _inflate(self, count: int) -> bytes:
        try:
            inflated: bytes = self._member.decompress(self._data, count)
        except zlib.error as error:
            raise SourceError(f"{self._name} is damaged: {error}; copy it again") from error
        self._data = self._member.unconsumed_tail
        self.ends_empty = self.ends_empty and not inflated
        if self._member.eof:
            self._data, self._member = self._member.unused_data, None
        return inflated

    def _begin(self) -> bool:
        """The next member; what follows the last one may be padded with zeros."""
        self._data = self._data.lstrip(b"\0") or self._stream.read(1, PIECE).lstrip(b"\0")
        while not self._data and self._stream.peek(1):
            self._data = self._stream.read(1, PIECE).lstrip(b"\0")
        if not self._data:
            return False
        self._member, self.ends_empty = zlib.decompressobj(_GZIP), True
        return True


def open_bytes(path: Path) -> ByteStream:
    """The bytes of a file; inflated, if its name says that it is compressed."""
    stream = ByteStream(path.open("rb"))
    return inflated(str(path), stream) if path.suffix.lower() in SUFFIXES else stream


def inflated(name: str, stream: ByteStream) -> ByteStream:
    """A stream of what a compressed one holds."""
    return ByteStream(Inflated(name, stream))


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: ``.csv`` of ``a.CSV.gz``."""
    name = path.name.lower()
    for ending in SUFFIXES:
        name = name.removesuffix(ending)
    return Path(name).suffix
