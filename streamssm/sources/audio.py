"""Audio files of any kind that libsndfile reads: flac, ogg, opus, mp3, aiff, wav."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from streamssm.errors import SourceError
from streamssm.sources.base import (
    Array,
    Request,
    Source,
    channel_map,
    check_floats,
    check_path,
    check_rate,
    closed_on_error,
)


class AudioSource(Source):
    """Frames of an open ``soundfile.SoundFile``, as float32."""

    def __init__(self, name: str, file: Any, request: Request):
        self.name, self.total = name, int(file.frames)
        self._file = file
        self._to_items = channel_map(name, int(file.channels), request)
        self._taken = 0

    def read(self, count: int) -> Array:
        """The next frames; a file that ends before its header says is damaged."""
        try:
            frames: Array = self._file.read(count, dtype="float32", always_2d=True)
        except RuntimeError as error:  # soundfile.LibsndfileError is one
            raise SourceError(f"{self.name} is damaged after {self._taken} samples: {error}") from error
        self._taken += len(frames)
        if not len(frames) and self.total is not None and self._taken < self.total:
            raise SourceError(
                f"{self.name} is truncated: it announces {self.total} samples, {self._taken} are there"
            )
        return self._to_items(frames)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_file(path: Path, request: Request) -> Source:
    """An audio file.

    Raises:
        SourceError: not audio, damaged, another rate or channel count, or soundfile is missing.
    """
    check_floats(str(path), "audio", request)
    check_path(path)
    try:
        soundfile = import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: the wheel found no libsndfile
        raise SourceError(
            f"{path}: this kind of file needs soundfile; pip install 'streamssm[audio]', or save it as wav"
        ) from error
    try:
        file = soundfile.SoundFile(str(path))
    except (RuntimeError, TypeError) as error:  # TypeError: soundfile takes the suffix .raw for headerless
        raise SourceError(
            f"{path} is not audio that libsndfile reads; for raw samples pass --input-format s16le or f32le"
        ) from error
    with closed_on_error(file):
        check_rate(str(path), file.samplerate, request)
        if not file.frames:
            raise SourceError(f"{path} holds no samples; there is nothing to push")
        return AudioSource(str(path), file, request)
