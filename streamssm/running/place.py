"""Where a run was in its source, as part of a snapshot, and how to go on there.

A source that can be replayed is known again by its name and by its content: the size and the sha256 of
the first 64 KiB of a file; of a folder, the names and sizes of the files in it. A file that grows is known by
what was in it, and by its number in the file system: after a rotation another one has its name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from streamssm.errors import SnapshotError
from streamssm.running.loop import Place
from streamssm.sources import Request, Source, folder_suffixes
from streamssm.sources.folder import files_in

_HEAD = 1 << 16
_TAIL = "tail:"
_SCHEMES = ("sim:", "file:", _TAIL)
#: how a source was read; with other values its items would be others
_READING = ("format", "rate", "channels", "channel", "names", "time_column", "on_bad", "allow_truncated")


class Identity(msgspec.Struct, frozen=True):
    """What a file or folder holds, as far as a look at it tells."""

    size: int
    sha256: str


class SavedSource(msgspec.Struct):
    """A source that can be replayed, and the place in it."""

    uri: str
    path: str
    identity: Identity
    reading: dict[str, Any]
    records: int
    ended: str | None
    record: str | None
    items: int
    complete: bool

    @property
    def place(self) -> Place:
        """The place alone."""
        return Place(self.records, self.ended, self.record, self.items, self.complete)


def path_of(uri: str) -> Path:
    """The file or folder that a URI names."""
    for scheme in _SCHEMES:
        if uri.startswith(scheme):
            return Path(uri.removeprefix(scheme))
    return Path(uri)


class Origin:
    """The source of this run: what is saved about it, and whether it is one that was saved."""

    def __init__(self, uri: str, source: Source, request: Request):
        self.uri, self.source = uri, source
        self._request = request
        self._path = path_of(uri)
        # at the start: what is written to the folder later is not the source
        self._identity = identify(self._path, request) if source.replayable else None
        if source.grows:
            self._identity = identify_growing(self._path)
        self._grows = source.grows
        self.text: dict[str, Any] | None = None  # what the encoder held at the beginning of the source
        # as it comes back from JSON
        reading = {name: getattr(request, name) for name in _READING}
        self._reading = {name: list(v) if isinstance(v, tuple) else v for name, v in reading.items()}

    def save(self, place: Place) -> SavedSource | None:
        """The place in it; None where it cannot be replayed."""
        identity = self._grown(place) if self._grows else self._identity
        if identity is None:
            return None
        return SavedSource(
            uri=self.uri,
            path=os.path.realpath(self._path),
            identity=identity,
            reading=self._reading,
            records=place.records,
            ended=place.ended,
            record=place.record if place.items else None,
            items=place.items,
            complete=place.complete,
        )

    def find(self, saved: SavedSource | None) -> Place | None:
        """The place where to go on; None to begin at the beginning, because it is another source.

        Raises:
            SnapshotError: it is the same one, but its content has changed, or it is read in another way.
        """
        if saved is None or self._identity is None or not self._same(saved):
            return None
        if saved.uri.startswith(_TAIL):
            # another file of that name begins at its beginning
            if identify_growing(self._path, saved.identity.size) != saved.identity:
                return None
        elif saved.identity != self._identity:
            if saved.complete:
                return None  # all of what was there is done; this is new
            raise SnapshotError(
                f"{self.uri} has changed since the state was saved in the middle of it: it had "
                f"{saved.identity.size} bytes, it has {self._identity.size}; put the old one back, or pass "
                "--from-start to take this one from its beginning"
            )
        if saved.reading != self._reading:
            other = [name for name in _READING if saved.reading.get(name) != self._reading[name]]
            raise SnapshotError(
                f"{self.uri} was read with another {', '.join(other)} when the state was saved in the middle "
                "of it; give the same options, or pass --from-start"
            )
        return saved.place

    def _grown(self, place: Place) -> Identity | None:
        """What is in a file that grows by now; None once it is no longer the one that was opened."""
        begun = self._identity
        if begun is None or not self.source.grows or place.complete:
            return None
        return identify_growing(self._path) if identify_growing(self._path, begun.size) == begun else None

    def _same(self, saved: SavedSource) -> bool:
        return saved.uri == self.uri or saved.path == os.path.realpath(self._path)


def identify(path: Path, request: Request) -> Identity | None:
    """What is there now; None if it cannot be looked at."""
    try:
        if path.is_dir():
            return _identify_folder(path, request)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return Identity(path.stat().st_size, hashlib.sha256(file.read(_HEAD)).hexdigest())
    except OSError:
        return None


def identify_growing(path: Path, size: int | None = None) -> Identity | None:
    """A file that grows, as it was when it had ``size`` bytes (None: now); None if it has fewer."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size if size is None else size
            head = file.read(min(size, _HEAD))
    except OSError:
        return None
    if status.st_size < size:
        return None
    return Identity(size, hashlib.sha256(b"%d:%b" % (status.st_ino, head)).hexdigest())


def _identify_folder(path: Path, request: Request) -> Identity:
    files = files_in(path, folder_suffixes(request))
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    listed = "\n".join(f"{name}\0{size}" for name, size in sorted(sizes.items()))
    return Identity(sum(sizes.values()), hashlib.sha256(listed.encode()).hexdigest())


def go_to(source: Source, place: Place) -> None:
    """Leave out what was taken before.

    Raises:
        SnapshotError: the records are not the ones that were there.
        SourceError: the source ends before the place, or is damaged.
    """
    for _ in range(place.records):
        source.skip_record()
    # files that cannot be read were no records, but leaving them out unread counts them
    while place.records and source.record != place.ended and source.more:
        source.skip_record()
    if place.records and source.record != place.ended:
        raise SnapshotError(_CHANGED.format(source.name, place.ended))
    if place.items:
        source.skip(place.items)
        if source.record != place.record:
            raise SnapshotError(_CHANGED.format(source.name, place.record))


_CHANGED = (
    "{} has no record {!r} where it was when the state was saved; put the old one back, or pass --from-start"
)
