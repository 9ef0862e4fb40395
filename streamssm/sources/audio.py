"""Audio files of any kind that libsndfile reads: flac, ogg, opus, mp3, aiff, wav; others go to libav."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from streamssm.errors import SourceError
from streamssm.sources import container
from streamssm.sources.base import Array, Request, Source, check_floats, check_path, closed_on_error
from streamssm.sources.convert import Converter
from streamssm.sources.frames import FrameSource

SUFFIXES = (
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".aifc",
    ".au",
    ".caf",
    ".w64",
    ".rf64",
)
_DECODED = 256  # frames at a time; so many may be lost with damaged ones
_EXACT = ("PCM_", "FLOAT", "DOUBLE")  # codecs in which a seek is exact to the sample


class AudioSource(FrameSource):
    """Frames of an open ``soundfile.SoundFile``, as float32."""

    def __init__(self, name: str, file: Any, request: Request):
        converter = Converter(name, file.samplerate, int(file.channels), request)
        super().__init__(name, converter, request.allow_truncated)
        self._frames_there = int(file.frames)
        self.total = converter.total(self._frames_there)
        self._file = file
        self._taken = 0

    def _frames(self, count: int) -> Array:
        """A file that ends before its header says is damaged."""
        try:
            # always as many: what mp3 decodes to depends, in the last bit, on how much is asked for
            frames: Array = self._file.read(_DECODED, dtype="float32", always_2d=True)
        except RuntimeError as error:  # soundfile.LibsndfileError is one
            raise SourceError(f"{self.name} is damaged after {self._taken} samples: {error}") from error
        self._taken += len(frames)
        if not len(frames) and self._taken < self._frames_there:
            message = f"it announces {self._frames_there} samples, {self._taken} are there"
            self._truncated(f"{self.name} is truncated: {message}", "copy it again")
            self.total = self._converter.total(self._taken)
        return frames

    def _leap(self, count: int) -> int:
        if not self._file.subtype.startswith(_EXACT) or not self._file.seekable():
            return 0
        frames = min(count, self._frames_there - self._taken)
        self._taken = int(self._file.seek(self._taken + frames))
        return frames

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_file(path: Path, request: Request) -> Source:
    """An audio file.

    Raises:
        SourceError: not audio, damaged, another number of channels, or the library is missing.
    """
    check_floats(str(path), "audio", request)
    check_path(path)
    if path.suffix.lower() in container.SUFFIXES:
        return container.open_file(path, request)
    try:
        file = import_module("soundfile").SoundFile(str(path))
    except (ImportError, OSError) as error:  # OSError: the wheel found no libsndfile
        return _elsewhere(path, request, error)
    except (RuntimeError, TypeError) as error:  # TypeError: soundfile takes the suffix .raw for headerless
        return _elsewhere(path, request, error)
    with closed_on_error(file):
        if not file.frames:
            raise SourceError(f"{path} holds no samples; there is nothing to push")
        source = AudioSource(str(path), file, request)
    source.replayable = path.is_file()
    return source


def _elsewhere(path: Path, request: Request, reason: Exception) -> Source:
    """What libsndfile does not read may be for libav, if that is there."""
    # libav sees audio in anything, sooner or later: what is named as headerless is not given to it
    if container.available() and path.suffix.lower() not in ("", ".raw", ".pcm", ".bin", ".dat"):
        return container.open_file(path, request)
    if isinstance(reason, ImportError | OSError):
        raise SourceError(
            f"{path}: this kind of file needs soundfile; pip install 'streamssm[audio]', or save it as wav"
        ) from reason
    raise SourceError(
        f"{path} is not audio that libsndfile reads; for raw samples pass --input-format s16le or f32le, for "
        "other containers and video pip install 'streamssm[media]'"
    ) from reason
