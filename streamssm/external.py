"""Weights in a file of their own beside the model, for models beyond the 2 GB of one ONNX file.

The model names such a file, and a model may be hostile, so nothing of a name is trusted: it must be
a bare name, of a plain file in the model's own folder and no link, with the size and the sha256 that
the manifest records. What is opened first is what is hashed and what is read from then on, whatever
the name points to later. Each tensor must lie within the file, apart from all others.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from streamssm.errors import IntegrityError, ModelFileError
from streamssm.manifest import ExternalFile
from streamssm.protobuf import Buffer, Span, fields, integer, integers, text

#: tensors in a file of their own begin at multiples of this, so that memory can be mapped
ALIGNMENT = 64
#: bytes of a number by ONNX's element type
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}

_KEYS = {"location", "offset", "length"}
_DIMS, _TYPE, _NAME, _EXTERNAL, _LOCATION = 1, 2, 8, 13, 14
#: fields of a TensorProto that hold values, and the one for a part of a tensor
_VALUES = {3, 4, 5, 6, 7, 9, 10, 11}
_MOST_DIGITS = 18
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Placed:
    """A tensor in another file: where it says that it lies."""

    name: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is written, replaced, or renamed."""

    device: int
    inode: int
    size: int
    written: int
    changed: int

    @classmethod
    def of(cls, descriptor: int | Path) -> Stamp:
        """That of an open file, or of what a path leads to without following a link."""
        said = os.fstat(descriptor) if isinstance(descriptor, int) else os.lstat(descriptor)
        return cls(said.st_dev, said.st_ino, said.st_size, said.st_mtime_ns, said.st_ctime_ns)


@dataclass(frozen=True)
class SideFile:
    """An opened file of weights, its hash verified."""

    path: Path
    data: mmap.mmap
    stamp: Stamp


def check_unchanged(path: Path, stamp: Stamp) -> None:
    """Refuse if a name has come to mean another file, or the file was written to.

    Raises:
        IntegrityError: it was.
    """
    try:
        same = Stamp.of(path) == stamp
    except OSError:
        same = False
    if not same:
        raise IntegrityError(f"{path} was changed while the model was opened; open it again")


def read_placed(data: Buffer, span: Span) -> Placed | None:
    """Where a TensorProto says its values lie; None if they are in it.

    Raises:
        ModelFileError: it says so in a way that two readers could take for two things.
    """
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, wire, start, stop in fields(data, *span):
        found.setdefault(number, []).append((wire, start, stop))
    elsewhere = bool(found.get(_LOCATION)) and integer(data, found[_LOCATION][-1][1]) != 0
    if _EXTERNAL not in found and not elsewhere:
        return None
    name = text(data, found[_NAME][-1][1:]) if _NAME in found else ""
    entries = [_entry(data, part[1:]) for part in found.get(_EXTERNAL, [])]
    said = dict(entries)
    doubtful = len(said) < len(entries) or any(
        len(found.get(number, ())) > 1 for number in (_TYPE, _NAME, _LOCATION)
    )
    if doubtful or said.keys() != _KEYS or not elsewhere or _VALUES & found.keys():
        told = ", ".join(f"{key}={value!r}" for key, value in entries[:6]) or "nothing"
        raise ModelFileError(
            f"keeps weight {name!r} in another file, {said.get('location', '')!r}, in a form that is not "
            f"ours ({told}); export it as one file"
        )
    offset, length = (_whole(said[key], key, name) for key in ("offset", "length"))
    dims = [size for part in found.get(_DIMS, []) for size in integers(data, *part)]
    item = ITEM_BYTES.get(integer(data, found[_TYPE][-1][1]) if _TYPE in found else 0)
    if item is None or min(dims, default=0) < 0 or prod(dims) * item != length:
        raise ModelFileError(
            f"gives weight {name!r} of shape {dims} {length} bytes, which is not its size; export it again"
        )
    return Placed(name, said["location"], offset, length)


def _entry(data: Buffer, span: Span) -> tuple[str, str]:
    parts: dict[int, str] = {}
    for number, wire, start, stop in fields(data, *span):
        if wire != 2 or number in parts:
            raise ModelFileError("describes external data in a form that is not ours; export it again")
        parts[number] = text(data, (start, stop))
    return parts.get(1, ""), parts.get(2, "")


def _whole(value: str, key: str, name: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS):
        raise ModelFileError(f"gives weight {name!r} the {key} {value!r}, no count of bytes; export it again")
    return int(value)


def check_places(placed: Sequence[Placed], files: Sequence[ExternalFile]) -> None:
    """Compare where tensors say they lie with the files that the manifest records.

    Raises:
        ModelFileError: a file that is not recorded or not used; a tensor past the end of its file,
            not aligned, or over another.
    """
    sizes = {file.name: file.size for file in files}
    for tensor in placed:
        if tensor.location not in sizes:
            raise ModelFileError(
                f"keeps weight {tensor.name!r} in another file, {tensor.location!r}, and records no hash of "
                "it; export it as one file"
            )
        if tensor.offset % ALIGNMENT or tensor.offset + tensor.length > sizes[tensor.location]:
            raise ModelFileError(
                f"puts weight {tensor.name!r} at bytes {tensor.offset} to {tensor.offset + tensor.length} of "
                f"{tensor.location!r}, which has {sizes[tensor.location]}; export it again"
            )
    unused = sizes.keys() - {tensor.location for tensor in placed}
    if unused:
        raise ModelFileError(f"records {min(unused)!r} and keeps nothing there; export it again")
    order = sorted(placed, key=lambda tensor: (tensor.location, tensor.offset))
    for before, after in itertools.pairwise(order):
        if before.location == after.location and before.offset + before.length > after.offset:
            raise ModelFileError(
                f"puts weights {before.name!r} and {after.name!r} in one place; export it again"
            )


def open_side_files(model: Path, files: Iterable[ExternalFile]) -> Mapping[str, SideFile]:
    """Open and verify every file that a manifest records, in the folder where the model really lies.

    Raises:
        ModelFileError: missing, a link, or no plain file.
        IntegrityError: not of the recorded size or sha256.
    """
    folder = Path(os.path.realpath(model)).parent
    return {file.name: _open(folder / file.name, file) for file in files}


def _open(path: Path, file: ExternalFile) -> SideFile:
    # not following links, and not waiting for the other end of a pipe
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise ModelFileError(f"{path} is a link; put the file itself beside the model")
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror or error}; the model keeps its weights there, "
            "copy both files together"
        ) from error
    try:
        return _verified(path, descriptor, file)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _verified(path: Path, descriptor: int, file: ExternalFile) -> SideFile:
    stamp = Stamp.of(descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ModelFileError(f"{path} is no plain file; copy the model's weights there")
    if stamp.size != file.size:
        raise IntegrityError(
            f"{path} has {stamp.size} bytes, the model records {file.size}: it is cut short or of another "
            "model; copy both files again"
        )
    actual = _sha256(descriptor)
    if actual != file.sha256:
        raise IntegrityError(
            f"{path} has sha256 {actual[:16]}..., the model records {file.sha256[:16]}...: it is damaged or "
            "of another model; copy or export both files again"
        )
    return SideFile(path, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), stamp)


def _sha256(descriptor: int) -> str:
    total, buffer = hashlib.sha256(), bytearray(_CHUNK)
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        while count := file.readinto(buffer):
            total.update(memoryview(buffer)[:count])
    return total.hexdigest()
