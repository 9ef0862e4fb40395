"""Sequencing reads as records: FASTA, FASTQ (plain or gzip) and BAM from files and pipes, CRAM and SAM files.

Letters become tokens as everywhere: A, C, G, T and N in either case, U as T, a letter for one of several as
N; a model of bytes gets them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from streamssm.alphabet import Nucleotides, has_bytes
from streamssm.errors import InputError, SourceError
from streamssm.manifest import Input
from streamssm.sources import gz
from streamssm.sources.bam import BamParser, HtslibParser
from streamssm.sources.base import INVALID, Array, Gap, Request, Source, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.fasta import BadReadError, FastaParser, FastqParser, ReadParser

SUFFIXES = {
    **dict.fromkeys((".fasta", ".fa", ".fna", ".ffn", ".frn"), "fasta"),
    **dict.fromkeys((".fastq", ".fq"), "fastq"),
    ".bam": "bam",
    ".cram": "cram",
    ".sam": "sam",
}
FORMATS = ("fasta", "fastq", "bam", "cram", "sam")


class ReadSource(Source):
    """Each read is a record of its letters.

    With ``on_bad`` "skip" a damaged read is left out, and so is a letter that the model does not know: gaps
    of "invalid" items count the letters. A damaged read is told before the next one, as a gap of none of its
    items.
    """

    def __init__(self, name: str, parser: ReadParser, request: Request):
        self.name = name
        self.notes = self._notes = list[str]()
        self._parser, self._skips = parser, request.on_bad == "skip"
        self._codes = codes(name, request.input)
        self._letters = np.zeros(0, np.uint8)  # read but not given
        self._running = self._any = False  # inside a record; whether there was one
        self._base = 0  # letters of the record that were taken
        self._lost: list[Gap] = []

    def read(self, count: int) -> Array:
        """The next letters of the read at hand, or of the next one."""
        items = self._next(count) if self._running or self._start() else self._codes[:0]
        self.gaps, self._lost = self._lost, []
        if not len(items):
            self._end()
        return items

    def skip_record(self) -> None:
        """Leave out the rest of the read at hand, or the next one."""
        if not self._running:
            self._start()
        self.gaps, self._lost = (), []
        self._end()

    def close(self) -> None:
        """Close the file."""
        self._parser.close()

    def _end(self) -> None:
        self.record = self.record if self._running else None
        self.more, self._running = self._running, False

    def _start(self) -> bool:
        """Go to the next read; False if there is none."""
        while True:
            try:
                name = self._parser.start()
            except BadReadError as error:
                self._refuse(str(error), "such reads")
                self._lost.append(Gap(INVALID, 0))
            else:
                break
        if name is None and not self._any:
            raise SourceError(f"{self.name} holds no reads; there is nothing to push")
        self.record, self._running, self._any = name, name is not None, True
        self._letters, self._base = self._letters[:0], 0
        return self._running

    def _next(self, count: int) -> Array:
        """The next letters that the model knows, up to one that it does not; none at the end of the read."""
        while True:
            if not len(self._letters):
                self._letters = np.frombuffer(self._parser.letters(count), np.uint8)
            tokens = self._codes[self._letters[:count]]
            known = tokens >= 0
            first = len(tokens) if known.all() else int(known.argmin())
            if first or not len(tokens):
                self._take(first)
                return tokens[:first]
            self._leave_out(int(known.argmax()) or len(tokens))

    def _take(self, count: int) -> None:
        self._letters = self._letters[count:]
        self._base += count

    def _leave_out(self, count: int) -> None:
        letter = chr(self._letters[0])
        self._refuse(
            f"{self.name}: read {self.record} has {letter!r} at base {self._base}, unknown to the model",
            "such letters",
        )
        before = self._lost.pop().items if self._lost and self._lost[-1].items else 0
        self._lost.append(Gap(INVALID, (before or 0) + count))
        self._take(count)

    def _refuse(self, message: str, what: str) -> None:
        """What is wrong is an error, or a note the first time.

        Raises:
            SourceError: with the message and the remedy.
        """
        if not self._skips:
            raise SourceError(f"{message}; correct it, or leave {what} out: --on-bad skip")
        if not self._notes:
            self._notes.append(f"{message}; left out, and so are more {what}")


def codes(name: str, spec: Input) -> Array:
    """The token of each byte ``[256]``, -1 for those that the model does not know.

    Raises:
        SourceError: the model's tokens are neither nucleotides nor bytes.
    """
    if has_bytes(spec):
        return np.arange(256, dtype=np.int64)
    if spec.alphabet != "nucleotides":
        raise SourceError(
            f"{name}: reads need a model of nucleotides or bytes; this one takes {spec.kind}"
            f"{' of a tokenizer' if spec.alphabet else ''}"
        )
    return np.array([_code(Nucleotides(spec.vocabulary or 0), byte) for byte in range(256)], np.int64)


def _code(alphabet: Nucleotides, byte: int) -> int:
    encoder = alphabet.encoder()
    try:
        encoder.feed(bytes([byte]))
    except InputError:
        return -1
    pieces = encoder.take(1)
    return pieces[0].token if pieces else -1


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """Reads from a pipe, or any byte stream.

    Raises:
        SourceError: the model takes no reads, or the format needs a file.
    """
    if request.format in ("cram", "sam"):
        raise SourceError(
            f"{name} cannot carry {request.format}; name a file, or pipe it: samtools view -b FILE"
        )
    if stream.peek(2) == gz.MAGIC:
        stream = gz.inflated(name, stream)
    parsers: dict[str, Callable[[str, ByteStream], ReadParser]]
    parsers = {"fasta": FastaParser, "fastq": FastqParser, "bam": BamParser}
    return ReadSource(name, parsers[request.format](name, stream), request)


def open_file(path: Path, request: Request) -> Source:
    """Reads from a file, compressed or not, whatever its name ends in."""
    codes(str(path), request.input)
    check_path(path)
    if request.format in ("cram", "sam"):
        return ReadSource(str(path), HtslibParser(str(path)), request)
    stream = ByteStream(path.open("rb"))
    with closed_on_error(stream):
        source = open_stream(str(path), stream, request)
    source.replayable = path.is_file()
    return source


def takes_reads(spec: Input) -> bool:
    """Whether a model that is given letters means nucleotides by them."""
    return spec.alphabet == "nucleotides"


def guess(path: Path, suffix: str) -> str | None:
    """What a file of letters holds, by its suffix or else its first bytes; None if it is plain letters."""
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if not path.is_file():  # what is read from a pipe is gone
        return None
    with closing(gz.open_bytes(path)) as stream:
        return format_of(stream.peek(4))


def format_of(start: bytes) -> str | None:
    """What a stream that starts so holds: FASTA, FASTQ or BAM; None if it is none of them."""
    return {b">": "fasta", b"@": "fastq"}.get(start[:1], "bam" if start == b"BAM\1" else None)
