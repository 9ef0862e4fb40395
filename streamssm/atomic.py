"""Writes a file so that a reader sees the old content or the new, never a part.

The bytes go to a temporary file in the same folder, are flushed to the disk, and the
file is renamed over the target; the folder is flushed last, so that a power cut after
the call cannot bring the old file back. A link is followed and stays; a device is refused,
for a rename would put a plain file in its place.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from streamssm.errors import OutputError


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that writing to ``path`` replaces.

    Raises:
        OutputError: it is a folder, a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} is a device or a pipe, which cannot be replaced; name a file")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], temporary: str | None = None) -> Iterator[Path]:
    """Yield the path of an empty temporary file; it becomes ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` is as it was. The
    temporary file keeps the suffix of ``path``, for writers that look at it. ``temporary`` makes a part of
    its name the same each time: one writer at a time, and however often that is killed it leaves one file.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or the path
            is a folder or a device.
    """
    target = target_of(path)
    part, mode = (secrets.token_hex(6), os.O_EXCL) if temporary is None else (temporary, os.O_TRUNC)
    made = target.with_name(f".{target.stem}.{part}{target.suffix}")
    try:
        # os.open, unlike tempfile, gives the file the permissions the umask asks for
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | mode, 0o666))
        yield made
        _flush(made, os.O_RDWR)
        os.replace(made, target)
        flush_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            made.unlink()


def write_bytes(path: str | os.PathLike[str], data: bytes, temporary: str | None = None) -> None:
    """Write ``data`` to ``path`` as a whole or not at all; ``temporary`` as in :func:`replacing`.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    with replacing(path, temporary) as made:
        made.write_bytes(data)


def move_into_place(files: Sequence[tuple[Path, Path]]) -> None:
    """Rename files onto their targets on the same file system, in order; the last one is what a reader
    looks for. If a rename fails, all targets are as they were.

    Raises:
        OutputError: a target is a folder or a device, or cannot be replaced.
    """
    moved: list[tuple[Path, Path | None]] = []
    try:
        for source, target in files:
            target_of(target)
            _flush(source, os.O_RDWR)
        for source, target in files:
            moved.append((target, _kept(target) if len(files) > 1 else None))
            os.replace(source, target)
        for folder in {target.parent for _, target in files}:
            flush_folder(folder)
    except OSError as error:
        for target, kept in moved:
            with suppress(OSError):
                os.replace(kept, target) if kept is not None else None
        raise OutputError(f"{files[-1][1]} cannot be written: {error.strerror or error}") from error
    finally:
        for _, kept in moved:
            if kept is not None:
                with suppress(OSError):
                    kept.unlink()


def _kept(target: Path) -> Path | None:
    """A second name for what is about to be replaced, where there are such names."""
    second = target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")
    try:
        os.link(target, second)
    except OSError:
        return None
    return second


def flush_folder(folder: Path) -> None:
    """Have the names of a folder on the disk too, where the system can."""
    # Windows cannot open a folder, and some network file systems cannot flush one
    if os.name == "posix":
        with suppress(OSError):
            _flush(folder, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
