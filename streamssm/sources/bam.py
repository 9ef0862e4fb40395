"""BAM as it comes, from files and pipes; CRAM and SAM files through pysam.

Each read is given as it was sequenced: those that were aligned to the other strand are turned back, and
secondary and supplementary alignments, which repeat reads, are left out. The layout of BAM is that of
section 4.2 of the SAM/BAM specification.
"""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any

from streamssm.errors import SourceError
from streamssm.sources.bytestream import PIECE, ByteStream
from streamssm.sources.gz import Inflated

_LETTERS = b"NACMGRSVTWYHKDBN"  # of the 16 codes; the first is "as the reference", which is not here
_PAIRS = bytes(letter for code in range(256) for letter in (_LETTERS[code >> 4], _LETTERS[code & 15]))
_COMPLEMENT = bytes.maketrans(b"ACMGRSVTWYHKDBN", b"TGKCYSBAWRDMHVN")
_PAIRED, _REVERSE, _FIRST, _SECOND, _REPEATED = 0x1, 0x10, 0x40, 0x80, 0x900
_HEAD = struct.Struct("<iiBBHHHIiii")
_LARGEST = 1 << 28  # bytes of one alignment; more is damage


class BamParser:
    """Reads of a stream of inflated BAM."""

    def __init__(self, name: str, stream: ByteStream):
        self._name, self._stream = name, stream
        self._letters = b""
        self._number = 0
        self._begun = False

    def start(self) -> str | None:
        """The next read."""
        if not self._begun:
            self._begun = True
            self._header()
        while (size := self._stream.take(4)) != b"":
            self._number += 1
            if (name := self._alignment(self._whole(size, 4))) is not None:
                return name
        below = self._stream.below
        if isinstance(below, Inflated) and not below.ends_empty:
            raise self._damage("it ends without the mark of a complete file")
        return None

    def letters(self, count: int) -> bytes:
        """The next letters of the read."""
        letters, self._letters = self._letters[:count], self._letters[count:]
        return letters

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def _header(self) -> None:
        """Step over the text and the references."""
        if self._stream.take(4) != b"BAM\1":
            raise SourceError(f"{self._name} does not start like BAM; see --input-format")
        self._step_over(self._int())
        for _ in range(self._int()):
            self._step_over(self._int() + 4)

    def _alignment(self, size: bytes) -> str | None:
        """The name of the read; None for one that was there before."""
        (length,) = struct.unpack("<i", size)
        if not _HEAD.size <= length <= _LARGEST:
            raise self._damage(f"alignment {self._number} has {length} bytes")
        block = self._whole(self._stream.take(length), length)
        _, _, named, _, _, operations, flag, count, *_ = _HEAD.unpack_from(block)
        place = _HEAD.size + named + 4 * operations
        packed = block[place : place + (count + 1) // 2]
        if len(packed) < (count + 1) // 2:
            raise self._damage(f"alignment {self._number} is shorter than its read")
        if flag & _REPEATED:
            return None
        letters = b"".join([_PAIRS[2 * code : 2 * code + 2] for code in packed])[:count]
        self._letters = letters.translate(_COMPLEMENT)[::-1] if flag & _REVERSE else letters
        name = block[_HEAD.size : _HEAD.size + named].rstrip(b"\0").decode("utf-8", "replace")
        return paired_name(name, flag) if name not in ("", "*") else str(self._number)

    def _int(self) -> int:
        (number,) = struct.unpack("<i", self._whole(self._stream.take(4), 4))
        if number < 0:
            raise self._damage(f"its header holds the length {number}")
        return int(number)

    def _step_over(self, count: int) -> None:
        while count:
            part = len(self._stream.take(min(count, PIECE)))
            if not part:
                raise self._damage("it ends inside the header")
            count -= part

    def _whole(self, data: bytes, count: int) -> bytes:
        if len(data) < count:
            raise self._damage(f"it ends inside alignment {self._number}")
        return data

    def _damage(self, message: str) -> SourceError:
        return SourceError(f"{self._name} is damaged or truncated: {message}; copy it again")


class HtslibParser:
    """Reads of a file through pysam."""

    def __init__(self, name: str):
        try:
            pysam = import_module("pysam")
        except ImportError as error:
            raise SourceError(
                f"{name}: this kind of file needs pysam; pip install 'streamssm[genomics]', or convert it: "
                "samtools view -b"
            ) from error
        self._name = name
        self._letters = b""
        pysam.set_verbosity(0)  # it prints to stderr what it raises
        try:
            self._file: Any = pysam.AlignmentFile(name, check_sq=False)
        except (OSError, ValueError) as error:
            raise SourceError(f"{name} cannot be read as alignments: {error}") from error
        self._alignments = self._file.fetch(until_eof=True)

    def start(self) -> str | None:
        """The next read."""
        try:
            while (found := next(self._alignments, None)) is not None and found.flag & _REPEATED:
                pass
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._name} is damaged or truncated: {error}; copy it again") from error
        if found is None:
            return None
        self._letters = (found.get_forward_sequence() or "").encode()
        return paired_name(found.query_name, found.flag)

    def letters(self, count: int) -> bytes:
        """The next letters of the read."""
        letters, self._letters = self._letters[:count], self._letters[count:]
        return letters

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def paired_name(name: str, flag: int) -> str:
    """The name of a read; the two ends of one fragment are told apart."""
    if flag & _PAIRED:
        return name + ("/1" if flag & _FIRST else "/2" if flag & _SECOND else "")
    return name
