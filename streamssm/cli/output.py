"""Where data go: standard output or a file, with errors typed before and during the work."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from streamssm.atomic import flush_folder, target_of
from streamssm.errors import OutputError, UsageError


class Output:
    """Bytes of data, flushed as they are written. ``path`` None is standard output.

    ``at`` continues a file: it is cut to so many bytes and goes on there; what is no file (a pipe, a device,
    standard output) just goes on. ``position`` counts the bytes of the whole.

    Raises:
        OutputError: the file cannot be opened, or is shorter than ``at``; now, before any work.
    """

    def __init__(self, path: Path | None, at: int | None = None):
        self._path = path
        self.position = at or 0
        self._file = _stdout() if path is None else _open(path, at)
        self._synced = False
        self.is_terminal = self._file.isatty()

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: the reader of standard output has gone.
            OutputError: the disk is full, or the like.
        """
        if not data:
            return
        with self._typed():
            self._file.write(data)
            self._file.flush()
        self.position += len(data)

    def sync(self) -> None:
        """Have what was written on the disk, where there is one: it survives a power cut after this call.

        Raises:
            OutputError: the disk is full, or the like.
        """
        if not _is_file(self._file):
            return
        with self._typed():
            os.fsync(self._file.fileno())
            if not self._synced and self._path is not None:
                flush_folder(Path(os.path.realpath(self._path)).parent)
        self._synced = True

    def finish(self, correct: Callable[[BinaryIO], None]) -> None:
        """Let ``correct`` change a complete file; nothing where it is none.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._path is None or not _is_file(self._file):
            return
        with self._typed():
            correct(self._file)
            self._file.flush()

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(
                f"{self._path or 'standard output'} cannot be written: {error.strerror or error}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is None:
            return
        try:
            self._file.close()
        except OSError as failure:
            if kind is None:
                raise OutputError(f"{self._path} cannot be written: {failure.strerror}") from failure


def _is_file(file: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError):  # it has no descriptor: a test's standard output
        return False


def _open(path: Path, at: int | None) -> BinaryIO:
    if at is not None and (path.is_file() or (at > 0 and not path.exists())):
        return _open_at(path, at)
    try:
        return path.open("wb")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


_REMEDY = "put it back, name another file, or start anew without --resume"


def _open_at(path: Path, at: int) -> BinaryIO:
    """An existing file, cut to ``at`` bytes."""
    try:
        size = path.stat().st_size
        if size < at:
            raise OutputError(
                f"{path} has {size} bytes, but {at} were written when the state was saved; {_REMEDY}"
            )
        file = path.open("r+b")
        try:
            file.truncate(at)
            file.seek(at)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise OutputError(f"{path} cannot be continued: {error.strerror}; {_REMEDY}") from error
    return file


def _stdout() -> BinaryIO:
    if sys.stdout is None:  # the shell's >&-
        raise OutputError("standard output is closed; write to a file with -o")
    return sys.stdout.buffer


def check_writable(path: Path) -> None:
    """Refuse, before any work, a file that could not be put in place after it.

    Raises:
        OutputError: the path is a folder or a device, or its folder is missing or read-only.
    """
    folder = target_of(path).parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {folder}: {error.strerror}") from error


def check_distinct(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse to write over a file that is being read, or to two outputs in one file.

    Raises:
        UsageError: two of the paths are the same file.
    """
    taken = {_identity(path): path for path in inputs}
    for path in outputs:
        identity = _identity(path)
        if identity in taken and not path.is_char_device():
            raise UsageError(f"{path} would be written over {taken[identity]}; choose another name")
        taken[identity] = path


def _identity(path: Path) -> str:
    return os.path.realpath(path)
