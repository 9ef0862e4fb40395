"""From a graph, its tensors and what it says about itself to a file, one tensor in memory at a time.

The file is written as one protobuf message by hand: the graph and its tensors first, each hashed as
it passes; what the file says about itself last, because it is known last and may be written again
when the file has been compared with the model. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from streamssm.atomic import move_into_place, target_of
from streamssm.errors import ExportError, OutputError
from streamssm.export.certify import Golden
from streamssm.export.folding import StoredTensor
from streamssm.external import ALIGNMENT
from streamssm.manifest import (
    DIGEST_PLACEHOLDER,
    GOLDEN_KEY,
    MANIFEST_KEY,
    TOKENIZER_KEY,
    ExternalFile,
    Manifest,
)
from streamssm.onnx_file import digest_start, read_model_file
from streamssm.protobuf import encode_message, encode_number, encode_varint

#: what one protobuf message can hold, with room for what the file says about itself
MAX_BYTES = 2**31 - 2**24
SIDE_SUFFIX = ".data"

_GRAPH, _METADATA, _INITIALIZER = 7, 14, 5
#: tensors of fewer bytes are never in a file of their own
_SMALL = 1024
#: tensors of more bytes start at a multiple of the alignment
_ALIGNED = 1 << 16
_SLICE = 1 << 23
_WRITTEN = 1 << 16


class Draft:
    """A model file in the making, in a folder of its own beside its place.

    ``one_file`` is the number of bytes up to which the weights lie in the model's file; more go into
    ``NAME.onnx.data`` beside it. Used as a context: what was not placed is removed at its end.
    """

    def __init__(self, target: Path, one_file: int = MAX_BYTES) -> None:
        self._target, self._one_file = target_of(target), min(one_file, MAX_BYTES)
        self._external: tuple[ExternalFile, ...] = ()
        self._metadata: dict[str, str] = {}
        self._body = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> Draft:
        with _refused(self._target):
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self._target.stem}.", dir=self._target.parent))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def path(self) -> Path:
        """The draft; a model that can be opened once it is described."""
        return self._folder / self._target.name

    @property
    def _side(self) -> Path:
        return self._folder / (self._target.name + SIDE_SUFFIX)

    def write(self, proto: onnx.ModelProto, tensors: Sequence[StoredTensor]) -> None:
        """Write the graph, whose initializers ``tensors`` are beside those it has.

        Of the metadata of ``proto`` only a tokenizer is kept.

        Raises:
            ExportError: a tensor is not of the shape that it is said to have, or the model is too
                large for one file even without its weights.
            OutputError: the disk is full.
        """
        self._metadata = {
            entry.key: entry.value for entry in proto.metadata_props if entry.key == TOKENIZER_KEY
        }
        head, graph = _head(proto), proto.graph.SerializeToString(deterministic=True)
        apart = sum(tensor.nbytes for tensor in tensors) + len(head) + len(graph) > self._one_file
        with _refused(self._target):
            outside = [tensor for tensor in tensors if apart and tensor.nbytes >= _SMALL]
            places = self._write_side(outside) if outside else {}
            entries = [_Entry(tensor, places.get(tensor.name)) for tensor in tensors]
            if len(graph) + sum(entry.least for entry in entries) > MAX_BYTES:
                raise ExportError("the graph does not fit into one file even without its weights")
            with self.path.open("wb") as file:
                out = _Hashing(file, self._hash)
                out.write(head)
                _write_graph(out, graph, entries)
                self._body = out.at

    def describe(self, manifest: Manifest, golden: Golden | None) -> Manifest:
        """Write what the file says about itself, in place of what it said before, and seal it with
        its hash; return the manifest as it is in the file.

        Raises:
            ManifestError: the manifest holds 64 zeros apart from the place of the hash.
            OutputError: the disk is full.
        """
        manifest = msgspec.structs.replace(manifest, sha256=DIGEST_PLACEHOLDER, external=self._external)
        sample = {} if golden is None else {GOLDEN_KEY: golden.encode(manifest)}
        text = manifest.encode().encode()
        entries = {MANIFEST_KEY: text, **{k: v.encode() for k, v in (sample | self._metadata).items()}}
        tail = b"".join(
            encode_message(_METADATA, encode_message(1, key.encode()) + encode_message(2, value))
            for key, value in entries.items()
        )
        start = tail.index(text)
        at = digest_start(tail, (start, start + len(text)), DIGEST_PLACEHOLDER)
        total = self._hash.copy()
        total.update(tail)
        digest = total.hexdigest()
        with _refused(self._target), self.path.open("r+b") as file:
            file.truncate(self._body)
            file.seek(self._body)
            file.write(tail[:at] + digest.encode() + tail[at + len(digest) :])
        return msgspec.structs.replace(manifest, sha256=digest)

    def place(self) -> Manifest:
        """Read the draft as the runtime will, and put it, and the file beside it, in place.

        Raises:
            OutputError: it cannot be.
        """
        manifest = read_model_file(self.path).manifest
        side = [self._target.with_name(self._side.name)] if self._external else []
        move_into_place([*((self._side, place) for place in side), (self.path, self._target)])
        return manifest

    def _write_side(self, tensors: Iterable[StoredTensor]) -> dict[str, tuple[str, int]]:
        """Fill the file of weights; returns its name and the offset of each tensor in it."""
        places, total = {}, hashlib.sha256()
        with self._side.open("wb") as file:
            out = _Hashing(file, total)
            for tensor in tensors:
                out.write(bytes(-out.at % ALIGNMENT))
                places[tensor.name] = (self._side.name, out.at)
                _write_values(out, tensor)
        self._external = (ExternalFile(self._side.name, out.at, total.hexdigest()),)
        return places


def write_model(
    path: Path, proto: onnx.ModelProto, manifest: Manifest, golden: Golden | None, one_file: int = MAX_BYTES
) -> Manifest:
    """Write a model whose tensors are all in memory to ``path``, as a whole or not at all.

    Raises:
        ExportError: it does not fit into a file.
        OutputError: the folder is not writable, or the disk is full.
    """
    with Draft(path, one_file) as draft:
        draft.write(*detached(proto))
        draft.describe(manifest, golden)
        return draft.place()


def detached(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[StoredTensor]]:
    """The model without its larger tensors, and those; nothing of them is copied."""
    small, tensors = onnx.ModelProto(), []
    for field, value in proto.ListFields():
        if field.name == "graph":
            continue
        if field.is_repeated:
            getattr(small, field.name).extend(value)
        else:
            setattr(small, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name == "initializer":
            continue
        if field.is_repeated:
            getattr(small.graph, field.name).extend(value)
        else:
            setattr(small.graph, field.name, value)
    for value in proto.graph.initializer:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.data_type))
        stored = StoredTensor(
            value.name, tuple(value.dims), dtype, lambda value=value: numpy_helper.to_array(value)
        )
        if stored.nbytes < _SMALL or not value.HasField("raw_data"):
            small.graph.initializer.append(value)
        else:
            tensors.append(stored)
    return small, tensors


def require_writable(path: Path) -> None:
    """Refuse, before any work, a file whose folder is missing or read-only.

    Raises:
        OutputError: it is.
    """
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write to {path.parent}: create the folder or choose another")


class _Hashing:
    """A file that hashes what is written to it and counts it."""

    def __init__(self, file: IO[bytes], total: hashlib._Hash) -> None:
        self._file, self._total = file, total
        self.at = 0

    def write(self, data: bytes | memoryview) -> None:
        # in small pieces: the system keeps them as such, and whoever maps the file to look up a row
        # of a table gets the memory of one piece, not of a megabyte
        for start in range(0, len(data), _WRITTEN):
            self._file.write(data[start : start + _WRITTEN])
        self._total.update(data)
        self.at += len(data)


class _Entry:
    """A tensor as it is written into the graph: what precedes its values, and the values or where
    they lie."""

    def __init__(self, tensor: StoredTensor, place: tuple[str, int] | None) -> None:
        self.tensor, self.place = tensor, place
        element = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        self._head = b"".join(encode_number(1, size) for size in tensor.shape) + encode_number(2, element)
        self._head += encode_message(8, tensor.name.encode())
        if place is not None:
            said = {"location": place[0], "offset": str(place[1]), "length": str(tensor.nbytes)}
            for key, value in said.items():
                pair = encode_message(1, key.encode()) + encode_message(2, value.encode())
                self._head += encode_message(13, pair)
            self._head += encode_number(14, 1)
        self.least = len(self.encoded(0)) + (0 if place is not None else tensor.nbytes)

    def encoded(self, at: int) -> bytes:
        """Everything that precedes the values in a file, from ``at`` on. Large ones are preceded by
        a blank comment of such a length that they are aligned."""
        if self.place is not None:
            return encode_message(_INITIALIZER, self._head)
        values = encode_varint(9 << 3 | 2) + encode_varint(self.tensor.nbytes)
        for blank in (None, *range(2 * ALIGNMENT)):
            comment = b"" if blank is None else encode_message(12, b" " * blank)
            body = self._head + comment + values
            size = encode_varint(len(body) + self.tensor.nbytes)
            found = encode_varint(_INITIALIZER << 3 | 2) + size + body
            if self.tensor.nbytes < _ALIGNED or (at + len(found)) % ALIGNMENT == 0:
                return found
        raise AssertionError("no blank comment aligns the values")


def _write_graph(out: _Hashing, graph: bytes, entries: Sequence[_Entry]) -> None:
    least = len(encode_varint(len(graph) + sum(entry.least for entry in entries)))
    for digits in (least, least + 1):  # of the graph's own length, which moves what follows
        at = start = out.at + 1 + digits
        at += len(graph)
        heads = []
        for entry in entries:
            heads.append(entry.encoded(at))
            at += len(heads[-1]) + (entry.tensor.nbytes if entry.place is None else 0)
        length = encode_varint(at - start)
        if len(length) == digits:
            break
    out.write(encode_varint(_GRAPH << 3 | 2) + length)
    out.write(graph)
    for entry, head in zip(entries, heads, strict=True):
        out.write(head)
        if entry.place is None:
            _write_values(out, entry.tensor)


def _write_values(out: _Hashing, tensor: StoredTensor) -> None:
    values = tensor.read()
    if values.shape != tensor.shape or values.dtype != tensor.dtype:
        raise ExportError(
            f"weight {tensor.name} is {values.dtype} {list(values.shape)} instead of {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
    rows = np.atleast_1d(values)
    step = max(1, _SLICE // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), step):
        # a slice at a time: a transposed matrix need not be copied whole
        part = np.ascontiguousarray(rows[first : first + step])
        little = part.astype(part.dtype.newbyteorder("<"), copy=False)
        out.write(memoryview(little.reshape(-1).view(np.uint8)))


def _head(proto: onnx.ModelProto) -> bytes:
    """Everything but the graph and the metadata."""
    head = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name not in ("graph", "metadata_props"):
            if field.is_repeated:
                getattr(head, field.name).extend(value)
            else:
                setattr(head, field.name, value)
    data: bytes = head.SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def _refused(target: Path) -> Iterator[Any]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
