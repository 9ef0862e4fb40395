"""Audio in containers and codecs that libsndfile does not know, through PyAV: mp4, mkv, webm, aac, g722, gsm.

Of a video the first stream of audio is taken. Files and pipes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Array, Request, Source, check_floats, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.convert import Converter
from streamssm.sources.frames import FrameSource
from streamssm.waiting import Interrupted

#: codecs without a container, which libav does not tell by their bytes
_BARE = {".g722": "g722", ".gsm": "gsm"}
SUFFIXES = (
    *_BARE,
    ".m4a",
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".mka",
    ".webm",
    ".aac",
    ".wma",
    ".3gp",
    ".avi",
    ".amr",
)


class ContainerSource(FrameSource):
    """Frames of the first audio stream of an open container, as float32."""

    def __init__(self, name: str, container: Any, request: Request, pipe: _Pipe | None = None):
        # a codec that libav does not know leaves a stream without a context
        found = next((audio for audio in container.streams.audio if audio.codec_context is not None), None)
        if found is None or not found.codec_context.channels:
            raise SourceError(
                f"{name} has no audio in it that libav reads; for raw samples pass --input-format s16le or "
                "f32le"
            )
        self._channels = int(found.codec_context.channels)
        converter = Converter(name, found.codec_context.sample_rate, self._channels, request)
        super().__init__(name, converter, request.allow_truncated)
        self._container, self._pipe = container, pipe
        self._decoded = self._decode(found)
        self._none = np.zeros((0, self._channels), np.float32)
        self._taken = 0

    def _frames(self, count: int) -> Array:
        """Decoded pieces have a length of their own."""
        frames = next(self._decoded, None)
        if frames is None and self._pipe is not None:
            self._pipe.check()
        frames = self._none if frames is None else frames
        self._taken += len(frames)
        return frames

    def _decode(self, audio: Any) -> Iterator[Array]:
        av = import_module("av")
        packed = av.AudioResampler(
            format="flt", layout=audio.codec_context.layout, rate=audio.codec_context.sample_rate
        )
        frames = self._container.decode(audio)
        while True:
            try:
                frame = next(frames, None)
                pieces = packed.resample(frame)
            except (av.FFmpegError, ValueError) as error:
                raise SourceError(f"{self.name} is damaged after {self._taken} samples: {error}") from error
            yield from (piece.to_ndarray().reshape(-1, self._channels) for piece in pieces if piece.samples)
            if frame is None:
                return

    def close(self) -> None:
        """Close the container and the bytes below it."""
        self._container.close()
        if self._pipe is not None:
            self._pipe.close()


def available() -> bool:
    """Whether the library is installed."""
    return find_spec("av") is not None


def open_file(path: Path, request: Request) -> Source:
    """A file that libav reads.

    Raises:
        SourceError: not audio, damaged, another number of channels, or the library is missing.
    """
    check_floats(str(path), "audio", request)
    check_path(path)
    container = _open(str(path), str(path), _BARE.get(path.suffix.lower()))
    with closed_on_error(container):
        source = ContainerSource(str(path), container, request)
    source.replayable = path.is_file()
    return source


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """The same from a pipe; containers that need their end first (most mp4) cannot be read so."""
    check_floats(name, "audio", request)
    pipe = _Pipe(stream)
    try:
        container = _open(name, pipe, None)
    except SourceError:
        pipe.check()
        raise
    with closed_on_error(container):
        return ContainerSource(name, container, request, pipe)


class _Pipe:
    """What libav reads from: an object with ``read``, and no ``seek``.

    libav takes no exceptions from it: a request to stop, or damage, looks like the end at first.
    """

    def __init__(self, stream: ByteStream):
        self._stream = stream
        self._failure: BaseException | None = None

    def read(self, count: int) -> bytes:
        if self._failure is None:
            try:
                return self._stream.read(1, count)
            except (Interrupted, SourceError) as error:
                self._failure = error
        return b""

    def check(self) -> None:
        """Raise what came instead of bytes."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


def _open(name: str, file: Any, format: str | None) -> Any:  # noqa: A002
    try:
        av = import_module("av")
    except (ImportError, OSError) as error:
        raise SourceError(
            f"{name}: this kind of file needs PyAV; pip install 'streamssm[media]', or save it as wav"
        ) from error
    try:
        return av.open(file, format=format, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise SourceError(
            f"{name} is not audio that libsndfile or libav reads; for raw samples pass --input-format s16le "
            "or f32le"
        ) from error
