"""A stream as bytes: a safetensors file with the state, the pending items and their place.

The metadata names the model by the sha256 of its file, so a snapshot cannot continue on
another one. ``digest`` is the sha256 of the whole snapshot with its own 64 digits set to
zero: damage anywhere is refused. Equal streams give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamssm.errors import SnapshotError, UsageError
from streamssm.manifest import DIGEST_PLACEHOLDER, Manifest

if TYPE_CHECKING:
    from streamssm.model import Model
    from streamssm.stream import StreamState

Array = npt.NDArray[Any]

FORMAT = "streamssm.snapshot"
VERSION = 1

_PENDING = "pending"
_STATE = "state."  # keeps a state of the name "pending" apart
_EXTRA = "extra."
_CODES = {"int64": "I64", "float32": "F32"}
_SHOWN = 3  # names in a message
_LIMIT = 1 << 26  # a header of 64 MiB is no header


class Header(msgspec.Struct, frozen=True):
    """The metadata of a snapshot. safetensors metadata are strings: so are the numbers."""

    digest: str  # first, so that its zeros are the first in the file
    format: str
    version: str
    model: str
    sha256: str
    position: str
    block: str
    batch: str
    ended: str
    allow_nonfinite: str


@dataclass(frozen=True)
class Snapshot:
    """A stream's state and how it was opened; ``extra`` is the caller's own text."""

    state: StreamState
    block: int
    batch: int | None
    allow_nonfinite: bool
    extra: dict[str, str]


def encode(model: Model, snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot of a stream of ``model``.

    Raises:
        UsageError: ``extra`` holds something else than text.
    """
    _check_extra(snapshot.extra)
    manifest, state, batch = model.manifest, snapshot.state, snapshot.batch
    header = Header(
        digest=DIGEST_PLACEHOLDER,
        format=FORMAT,
        version=str(VERSION),
        model=manifest.name,
        sha256=model.sha256,
        position=str(state.position),
        block=str(snapshot.block),
        batch="none" if batch is None else str(batch),
        ended=str(int(state.ended)),
        allow_nonfinite=str(int(snapshot.allow_nonfinite)),
    )
    metadata = msgspec.to_builtins(header) | {_EXTRA + key: text for key, text in snapshot.extra.items()}
    tensors = {_STATE + spec.name: array for spec, array in zip(manifest.states, state.states, strict=True)}
    data = _serialise({**tensors, _PENDING: state.pending}, metadata)
    return data.replace(DIGEST_PLACEHOLDER.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _check_extra(extra: dict[str, str]) -> None:
    """Refuse now what :func:`decode` could not read later."""
    for key, text in extra.items():
        if not (isinstance(key, str) and isinstance(text, str)):
            raise UsageError(
                f"extra {{{key!r}: {text!r}}} is not text; a snapshot keeps strings: json.dumps it"
            )


def decode(model: Model, data: bytes) -> Snapshot:
    """Read a snapshot of a stream of ``model``.

    Raises:
        SnapshotError: damaged, of another model, or of a newer version.
    """
    from streamssm.stream import StreamState

    header, metadata = _header(data)
    _check_digest(data, header.digest)
    if header.sha256 != model.sha256:
        raise SnapshotError(
            f"the snapshot is of model {header.model} with sha256 {header.sha256[:16]}..., this is "
            f"{model.manifest.name} with {model.sha256[:16]}...; load the file it was made with"
        )
    tensors = _tensors(data)
    batch = None if header.batch == "none" else _number(header, "batch")
    pending, position = _check_tensors(model.manifest, tensors, batch or 1), _number(header, "position")
    ended = header.ended == "1"
    waiting, hop = pending.shape[1], model.manifest.input.hop
    if position < waiting or (not ended and (position - waiting) % hop):
        raise SnapshotError(f"the snapshot is at item {position} with {waiting} pending: both cannot be")
    states = tuple(tensors[_STATE + spec.name] for spec in model.manifest.states)
    extra = {key.removeprefix(_EXTRA): text for key, text in metadata.items() if key.startswith(_EXTRA)}
    state = StreamState(states, pending, position, ended)
    return Snapshot(state, _number(header, "block"), batch, header.allow_nonfinite == "1", extra)


def decode_one(model: Model, data: bytes) -> Snapshot:
    """:func:`decode`, of a single sequence that goes on.

    Raises:
        SnapshotError: as of :func:`decode`.
        UsageError: it is of a batch, or of a stream that has ended.
    """
    saved = decode(model, data)
    if saved.batch is not None or saved.state.ended:
        what = "that has ended" if saved.batch is None else f"of {saved.batch} sequences"
        raise UsageError(f"the snapshot is of a stream {what}; a slot takes one sequence that goes on")
    return saved


def _check_tensors(manifest: Manifest, tensors: dict[str, Array], batch: int) -> Array:
    """Compare the tensors with the manifest; returns the pending items."""
    wanted = {_STATE + spec.name: (spec.dtype, (batch, *spec.shape)) for spec in manifest.states}
    if tensors.keys() != {_PENDING, *wanted}:
        missing, strange = sorted({_PENDING, *wanted} - set(tensors)), sorted(tensors.keys() - wanted)
        raise SnapshotError(
            f"the snapshot holds {len(tensors)} tensors, the model wants {1 + len(wanted)}; missing are "
            f"{missing[:_SHOWN]}, unknown {[name for name in strange if name != _PENDING][:_SHOWN]}"
        )
    for name, (dtype, shape) in wanted.items():
        _check_tensor(name, tensors[name], dtype, shape)
    pending, spec = tensors[_PENDING], manifest.input
    items = pending.shape[1] if pending.ndim > 1 else 0
    _check_tensor(_PENDING, pending, spec.dtype, (batch, items, *spec.shape))
    return pending


def read(source: str | os.PathLike[str] | bytes) -> bytes:
    """The bytes of a snapshot, from a path or as they are.

    Raises:
        SnapshotError: the file cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise SnapshotError(f"the snapshot {source} cannot be read: {error.strerror or error}") from error


def _serialise(tensors: dict[str, Array], metadata: dict[str, str]) -> bytes:
    """A safetensors file. safetensors' own writer orders the metadata at random, and takes
    the memory of a strided array as it lies."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # widest first: aligned
    table: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        table[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    body = b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for _, array in ordered)
    return len(head).to_bytes(8, "little") + head + body


def _header(data: bytes) -> tuple[Header, dict[str, str]]:
    """The metadata, before anything else in the file is believed."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_LIMIT, len(data) - 8):
        raise SnapshotError(f"{len(data)} bytes are no snapshot, or only the start of one; save it again")
    try:
        metadata = msgspec.json.decode(data[8 : 8 + size], type=dict[str, Any]).get("__metadata__")
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise SnapshotError("the file is no streamssm snapshot, or it is damaged; save it again")
        if metadata.get("version") != str(VERSION):
            raise SnapshotError(
                f"the snapshot has version {metadata.get('version')!r}, this streamssm reads {VERSION}; "
                "upgrade streamssm, or save it again"
            )
        return msgspec.convert(metadata, Header), msgspec.convert(metadata, dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"the snapshot is damaged: {error}; save it again") from error


def _check_digest(data: bytes, digest: str) -> None:
    digits = digest.encode()
    if len(digits) != len(DIGEST_PLACEHOLDER) or data.count(digits) != 1:
        raise SnapshotError("the snapshot is damaged: its digest is no sha256; save it again")
    actual = hashlib.sha256(data.replace(digits, DIGEST_PLACEHOLDER.encode())).hexdigest()
    if actual != digest:
        raise SnapshotError(
            f"the snapshot is damaged: its content has sha256 {actual[:16]}..., "
            f"it records {digest[:16]}...; save it again"
        )


def _tensors(data: bytes) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise SnapshotError(f"the snapshot is damaged: {error}; save it again") from error


def _check_tensor(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise SnapshotError(
            f"{name} of the snapshot is {array.dtype} {list(array.shape)}, "
            f"the model wants {dtype} {list(shape)}"
        )


def _number(header: Header, name: str) -> int:
    text = getattr(header, name)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise SnapshotError(f"the snapshot's {name} is {text!r}, not a number; save it again")
    return int(text)
