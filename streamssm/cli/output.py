"""Where data go: standard output or a file, with errors typed before and during the work."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from streamssm.atomic import target_of
from streamssm.errors import OutputError, UsageError


class DataOutput:
    """Lines of data, flushed as they are written. ``path`` None is standard output.

    Raises:
        OutputError: the file cannot be opened, now, before any work.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._file: BinaryIO = _stdout() if path is None else _open(path)
        self.is_terminal = self._file.isatty()

    def write(self, lines: list[bytes]) -> None:
        """Write whole lines.

        Raises:
            BrokenPipeError: the reader of standard output has gone.
            OutputError: the disk is full, or the like.
        """
        if not lines:
            return
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            name = self._path or "standard output"
            raise OutputError(f"{name} cannot be written: {error.strerror}") from error

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


def _stdout() -> BinaryIO:
    if sys.stdout is None:  # the shell's >&-
        raise OutputError("standard output is closed; write to a file with -o")
    return sys.stdout.buffer


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


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
