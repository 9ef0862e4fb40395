"""A folder: every file in it that can feed the model is a record, in the order of their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from streamssm.errors import SourceError, UsageError
from streamssm.sources.base import Array, Request, Source

Opener = Callable[[Path], Source]


class FolderSource(Source):
    """The items of one file after the other; a record's name is its path inside the folder.

    With ``on_bad`` "skip" a file that cannot be opened is left out, and one that is damaged ends where the
    damage begins; both are noted.
    """

    def __init__(self, folder: Path, files: Sequence[Path], opener: Opener, request: Request):
        self.name = str(folder)
        self.replayable = True
        self.notes = self._notes = list[str]()
        self._folder, self._files, self._opener, self._request = folder, list(files), opener, request
        self._next = 0
        self._file: Source | None = None
        self._told: set[str] = set()

    def read(self, count: int) -> Array:
        """The next items of the file at hand, or of the next one."""
        self.gaps = ()
        file = self._file = self._file or self._open()
        if file is None:
            self.record, self.more = None, False
            return self._none()
        try:
            items = file.read(count)
        except SourceError as error:
            self._leave_out(error)
            items = self._none()
        self.gaps = file.gaps
        self._tell(file)
        if not len(items):
            self._end()
        return items

    def skip_record(self) -> None:
        """Leave out the rest of the file at hand, or the next one without opening it."""
        if self._file is None and self._next < len(self._files):
            self.record = self._name(self._files[self._next])
            self._next += 1
        self._end()

    def close(self) -> None:
        """Close the file at hand."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> Source | None:
        """The next file that can be opened; None if there is none."""
        while self._next < len(self._files):
            path = self._files[self._next]
            self._next += 1
            try:
                file = self._opener(path)
            except SourceError as error:
                self._leave_out(error)
                continue
            self.record = self._name(path)
            return file
        return None

    def _end(self) -> None:
        self.close()
        self._file, self.more = None, self._next < len(self._files)

    def _leave_out(self, error: SourceError) -> None:
        if self._request.on_bad == "refuse":
            raise SourceError(f"{error} (--on-bad skip leaves such files out)") from error
        self._notes.append(f"{error}; left out")

    def _tell(self, file: Source) -> None:
        """Its notes, but for those that another file had already."""
        for note in file.notes:
            what = note.removeprefix(file.name)
            if what not in self._told:
                self._told.add(what)
                self._notes.append(note)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _none(self) -> Array:
        return np.zeros((0, *self._request.input.shape), self._request.input.dtype)


def open_folder(folder: Path, request: Request, suffixes: Sequence[str], opener: Opener) -> Source:
    """All files in a folder and the folders in it that end in one of the suffixes; hidden ones are not seen.

    Raises:
        SourceError: there is none, or the folder cannot be read.
        UsageError: the model takes nothing that comes in folders.
    """
    if not suffixes:
        raise UsageError(f"{folder} is a folder; a model of {request.input.kind} takes one file at a time")
    try:
        files = sorted(files_in(folder, tuple(suffixes)), key=lambda path: path.relative_to(folder).parts)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror}") from error
    if not files:
        raise SourceError(f"{folder} is a folder without a file that ends in {', '.join(suffixes)}")
    return FolderSource(folder, files, opener, request)


def files_in(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files that a folder gives, in no order.

    Raises:
        OSError: the folder cannot be read.
    """
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent, name)


def _refuse(error: OSError) -> None:
    raise error
