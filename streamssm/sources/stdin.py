"""Standard input: told by its first bytes, as far as they tell, else by ``--input-format``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from streamssm.errors import SourceError
from streamssm.sources import container, gz, jsonl, raw, reads, table, text, wav
from streamssm.sources.arrival import watched
from streamssm.sources.base import Request, Source, check_names
from streamssm.sources.bytestream import ByteStream

NAME = "standard input"
_OPENERS: Mapping[str, Callable[[str, ByteStream, Request], Source]] = {
    "wav": wav.open_stream,
    "audio": container.open_stream,
    "csv": table.open_stream,
    "json": jsonl.open_stream,
    "jsonl": jsonl.open_stream,
    "bytes": text.open_stream,
    "text": text.open_stream,
    **dict.fromkeys(("fasta", "fastq", "bam"), reads.open_stream),
    **dict.fromkeys(raw.ENCODINGS, raw.open_stream),
}


def open_stdin(request: Request) -> Source:
    """The source "-".

    Raises:
        SourceError: the format cannot be told, or cannot be read from a pipe.
    """
    if sys.stdin is None:  # the shell's <&-
        raise SourceError(f"{NAME} is closed; name a file instead of -")
    stream = ByteStream(sys.stdin.buffer, owned=False)
    if request.format == "auto" and stream.peek(2) == gz.MAGIC:
        stream = gz.inflated(NAME, stream)
    name = request.format if request.format != "auto" else _guess(stream, request)
    check_names(name, request)
    if name not in _OPENERS:
        raise SourceError(f"{NAME} cannot carry {name}; save it to a file, or use {', '.join(_OPENERS)}")
    return watched(_OPENERS[name](NAME, stream, request.with_format(name)), request)


def _guess(stream: ByteStream, request: Request) -> str:
    if reads.takes_reads(request.input) and (found := reads.format_of(stream.peek(4))) is not None:
        return found
    if text.takes_text(request):
        return "text"
    if request.input.kind != "samples":
        return "jsonl" if stream.peek(1) in (b"{", b"[") else "csv"
    start = stream.peek(4)
    if start in (b"RIFF", b"RF64"):
        return "wav"
    if not start:
        raise SourceError(f"{NAME} is empty; there is nothing to push")
    raise SourceError(
        f"{NAME} starts with {start!r}, not with a wav header; for raw samples pass --input-format s16le "
        "or f32le, for another kind of audio file audio"
    )
