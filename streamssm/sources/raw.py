"""Samples without a header, from a file or a pipe: little-endian, channels interleaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamssm.errors import SourceError, UsageError
from streamssm.sources.base import Array, Request, Source, check_floats, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.convert import Converter
from streamssm.sources.frames import FrameSource


@dataclass(frozen=True)
class Encoding:
    """How one number is stored; integers are scaled to [-1, 1)."""

    nbytes: int
    decode: Callable[[bytes], Array]


def _plain(dtype: str, scale: float, offset: float = 0.0) -> Encoding:
    kind = np.dtype(dtype)

    def decode(data: bytes) -> Array:
        # int32 to float32 rounds once here; powers of two scale without another rounding
        with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which the stream refuses
            values = np.frombuffer(data, kind).astype(np.float32)
        return (values + np.float32(offset)) * np.float32(scale) if scale != 1.0 or offset else values

    return Encoding(kind.itemsize, decode)


def _decode_s24(data: bytes) -> Array:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.float32) * np.float32(2.0**-31)


ENCODINGS: Mapping[str, Encoding] = {
    "f32le": _plain("<f4", 1.0),
    "f64le": _plain("<f8", 1.0),
    "s16le": _plain("<i2", 2.0**-15),
    "s24le": Encoding(3, _decode_s24),
    "s32le": _plain("<i4", 2.0**-31),
    "u8": _plain("u1", 2.0**-7, -128.0),
}


class RawSource(FrameSource):
    """Items decoded from a byte stream.

    ``announced`` is how many bytes a header promised: an earlier end is damage. ``rate`` is the data's own,
    None where nothing says another one than the model's.
    """

    def __init__(
        self,
        name: str,
        stream: ByteStream,
        encoding: Encoding,
        channels: int,
        request: Request,
        *,
        rate: float | None = None,
        announced: int | None = None,
    ):
        super().__init__(name, Converter(name, rate, channels, request), request.allow_truncated)
        self._stream, self._encoding, self._announced = stream, encoding, announced
        self._channels = channels
        self._frame = encoding.nbytes * channels
        self._taken = 0
        self._size: int | None = None  # bytes of samples in a file
        stream.limit = announced

    def _frames(self, count: int) -> Array:
        data = self._stream.read(self._frame, count)
        self._taken += len(data)
        # a read is a multiple of the frame; only the end leaves nothing, or a part of one
        partial = len(data) % self._frame
        if self._announced is not None and self._taken < self._announced and (partial or not data):
            self._truncated(*self._short(self._announced, self._taken))
        elif partial:
            self._truncated(*self._cut(partial))
        whole = data[: len(data) - partial]
        return self._encoding.decode(whole).reshape(-1, self._channels)

    def _leap(self, count: int) -> int:
        if self._size is None:
            return 0
        whole = min(count, (self._size - self._taken) // self._frame)
        leapt = self._stream.leap(whole * self._frame)
        self._taken += leapt
        return leapt // self._frame

    def check_size(self, there: int) -> None:
        """Settle ``total`` from the bytes of samples that a file holds.

        Raises:
            SourceError: fewer than announced, none, or a part of an item at the end.
        """
        announced = there if self._announced is None else self._announced
        if there < announced:
            self._truncated(*self._short(announced, there))
            self._announced = None  # told once
            announced = self._stream.limit = there
        if not announced:
            raise SourceError(f"{self.name} holds no samples; there is nothing to push")
        if announced % self._frame:
            self._truncated(*self._cut(announced % self._frame))
            announced -= announced % self._frame
            self._stream.limit = announced
        self._size = announced
        self.total = self._converter.total(announced // self._frame)

    def _short(self, announced: int, there: int) -> tuple[str, str]:
        message = f"its header announces {announced} bytes of samples, {there} are there"
        return f"{self.name} is truncated: {message}", "copy it again"

    def _cut(self, partial: int) -> tuple[str, str]:
        message = f"{self.name} ends in the middle of an item, after {partial} of its {self._frame} bytes"
        return message, "check --input-format and --channels"

    def close(self) -> None:
        """Close the byte stream."""
        self._stream.close()


def open_stream(name: str, stream: ByteStream, request: Request) -> RawSource:
    """Raw samples from a pipe, or any byte stream.

    Raises:
        SourceError: the model takes another number of channels, or tokens.
        UsageError: the channel options contradict each other.
    """
    check_floats(name, "raw samples", request)
    if request.channel is not None and request.channels is None:
        raise UsageError(
            f"--channel {request.channel}: raw samples need --channels N, how many are interleaved"
        )
    channels = request.columns if request.channels is None else request.channels
    return RawSource(name, stream, ENCODINGS[request.format], channels, request, rate=request.rate)


def open_file(path: Path, request: Request) -> Source:
    """Raw samples from a file, whose size tells their number."""
    check_path(path)
    stream = ByteStream(path.open("rb"))
    with closed_on_error(stream):
        source = open_stream(str(path), stream, request)
        if path.is_file():
            source.check_size(path.stat().st_size)
            source.replayable = True
    return source
