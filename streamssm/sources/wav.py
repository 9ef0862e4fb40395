"""RIFF wav with PCM or float samples, from a file or a pipe, without any library.

Other encodings inside a wav file (A-law, ADPCM, RF64) are left to libsndfile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from streamssm.errors import SourceError
from streamssm.sources import audio
from streamssm.sources.base import Request, Source, check_floats, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.raw import ENCODINGS, Encoding, RawSource

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {
    (PCM, 8): "u8",
    (PCM, 16): "s16le",
    (PCM, 24): "s24le",
    (PCM, 32): "s32le",
    (FLOAT, 32): "f32le",
    (FLOAT, 64): "f64le",
}
# programs that write to a pipe cannot know the size: they put 0 or a number near 2 or 4 GiB
_UNKNOWN = 0x7FFFF000


class ForeignEncodingError(Exception):
    """A wav file with samples that only libsndfile decodes."""


@dataclass(frozen=True)
class Header:
    """What stands before the samples; ``size`` is in bytes, None for "until the end"."""

    encoding: Encoding
    channels: int
    rate: int
    size: int | None


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """A wav stream, from its first byte.

    Raises:
        SourceError: not wav, cut short, an unsupported encoding, another number of channels.
    """
    check_floats(name, "audio", request)
    try:
        return _open(name, stream, request)
    except ForeignEncodingError as error:
        raise SourceError(f"{name} {error}; save it as 16-bit PCM first") from error


def open_file(path: Path, request: Request) -> Source:
    """A wav file; damage that the file's size shows is refused before anything is read."""
    check_floats(str(path), "audio", request)
    check_path(path)
    stream = ByteStream(path.open("rb"))
    try:
        with closed_on_error(stream):
            source = _open(str(path), stream, request)
    except ForeignEncodingError:
        return audio.open_file(path, request)
    if path.is_file():
        with closed_on_error(stream):
            source.check_size(path.stat().st_size - stream.consumed)
            source.replayable = True
    return source


def _open(name: str, stream: ByteStream, request: Request) -> RawSource:
    header = read_header(name, stream)
    return RawSource(
        name, stream, header.encoding, header.channels, request, rate=header.rate, announced=header.size
    )


def read_header(name: str, stream: ByteStream) -> Header:
    """Read up to the first sample.

    Raises:
        SourceError: not a wav stream, or cut short.
        ForeignEncodingError: wav, but not plain PCM or float samples.
    """
    magic = _take(name, stream, 12)
    if magic[:4] == b"RF64":
        raise ForeignEncodingError("is an RF64 file")
    if magic[:4] != b"RIFF" or magic[8:] != b"WAVE":
        raise SourceError(f"{name} does not start like a wav file; check the file or --input-format")
    format_chunk: bytes | None = None
    while True:
        tag, size = struct.unpack("<4sI", _take(name, stream, 8))
        if tag == b"data":
            break
        body = _take(name, stream, size + size % 2)
        if tag == b"fmt ":
            format_chunk = body
    if format_chunk is None or len(format_chunk) < 16:
        raise SourceError(f"{name} has no format before its samples; it is not a usable wav file")
    return _header(format_chunk, size)


def _header(chunk: bytes, size: int) -> Header:
    code, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == EXTENSIBLE and len(chunk) >= 26:
        (code,) = struct.unpack_from("<H", chunk, 24)
    name = _NAMES.get((code, bits))
    if name is None or channels < 1 or align != channels * ENCODINGS[name].nbytes:
        raise ForeignEncodingError(f"holds {bits}-bit samples of wav format {code}, not plain PCM or float")
    known = 0 < size < _UNKNOWN
    return Header(ENCODINGS[name], channels, rate, size if known else None)


def _take(name: str, stream: ByteStream, count: int) -> bytes:
    # a damaged size may ask for gigabytes: peek stops at the end of what is there
    data = stream.take(count)
    if len(data) < count:
        raise SourceError(f"{name} is truncated: it ends inside the wav header; copy it again")
    return data
