"""Reads and checks a model file without the onnx package and without a backend.

An ONNX file is one protobuf message. The walk below visits the few fields that decide
whether the file is ours and safe to open (manifest, operators, external data) and steps
over everything else, so a file of any size is checked without being decoded. Field
numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from streamssm.errors import IntegrityError, ManifestError, ModelFileError
from streamssm.external import (
    Placed,
    SideFile,
    Stamp,
    check_places,
    check_unchanged,
    open_side_files,
    read_placed,
)
from streamssm.manifest import (
    DIGEST_PLACEHOLDER,
    GOLDEN_KEY,
    MANIFEST_KEY,
    TOKENIZER_KEY,
    Manifest,
    decode_manifest,
)
from streamssm.protobuf import Buffer, MalformedError, Span, fields, release, text

#: operator domains a model may use; every other is code we know nothing of
ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "streamssm", "com.microsoft"})
#: operators of an allowed domain that make a backend open another file
REFUSED_OPS = frozenset({("com.microsoft", "EPContext")})

_CHUNK = 1 << 20
#: bytes after which the memory that a file is mapped to is let go of
_RELEASED = 1 << 24
_MAX_DEPTH = 32


@dataclass(frozen=True)
class ModelFile:
    """What a model file says, read without running it.

    ``op_counts`` holds the number of nodes for each ``(domain, operator)``, nodes inside
    control flow and function bodies included; ``functions`` holds ``(domain, name)`` of the
    model-local functions; ``golden`` is the golden sample as safetensors, if there is one;
    ``tokenizer`` likewise, as it is in the file: ``streamssm.tokenizer.packed`` unpacks it.
    ``side`` holds the files of weights beside it by name, opened and verified.
    """

    path: Path
    manifest: Manifest
    golden: bytes | None
    op_counts: Mapping[tuple[str, str], int]
    functions: frozenset[tuple[str, str]]
    tokenizer: bytes | None = None
    side: Mapping[str, SideFile] = field(default_factory=dict)
    stamp: Stamp | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the file, and of those beside it."""
        own = self.path.stat().st_size if self.stamp is None else self.stamp.size
        return own + sum(file.size for file in self.manifest.external)

    def check_unchanged(self) -> None:
        """Refuse if what was read is no longer what lies there; for whoever reads it again by name.

        Raises:
            IntegrityError: a file was written to or replaced since.
        """
        if self.stamp is not None:
            check_unchanged(Path(os.path.realpath(self.path)), self.stamp)
        for side in self.side.values():
            check_unchanged(side.path, side.stamp)

    @property
    def domains(self) -> frozenset[str]:
        """Operator domains in use; ``""`` is the standard one."""
        return frozenset(domain for domain, _ in self.op_counts)


def read_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Read the manifest of a model file and check the file against it, and the files of weights
    beside it.

    Raises:
        ModelFileError: missing, truncated, not an ONNX file, not a streamssm model, an
            operator domain or an external file that is not allowed.
        ManifestError: the manifest cannot be decoded.
        IntegrityError: the content does not have the sha256 that the manifest records, or that of
            a file beside it not the recorded one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            stamp = Stamp.of(file.fileno())
            if stamp.size == 0:
                raise ModelFileError(f"{path} is empty; copy or export it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = _read(path, data)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return replace(found, side=open_side_files(path, found.manifest.external), stamp=stamp)


def seal(data: bytes) -> bytes:
    """Record the sha256 of a serialised model in its manifest, whose ``sha256`` must be
    64 zeros, and return the new bytes; they differ in these 64 bytes only.

    Raises:
        ModelFileError: ``data`` holds no manifest with 64 zeros in it.
    """
    contents = _walk_model(Path("model"), data)
    start = digest_start(data, _manifest_span(Path("model"), contents), DIGEST_PLACEHOLDER)
    digest = _digest(data, start)
    return data[:start] + digest.encode() + data[start + len(digest) :]


def _read(path: Path, data: Buffer) -> ModelFile:
    contents = _walk_model(path, data)
    span = _manifest_span(path, contents)
    try:
        manifest = decode_manifest(bytes(data[slice(*span)]))
        _check_digest(path, data, span, manifest)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error
    _check_ops(path, contents)
    _check_external(path, contents, manifest)
    return ModelFile(
        path,
        manifest,
        _golden(path, data, contents),
        dict(contents.ops),
        frozenset(contents.functions),
        _metadata(data, contents, TOKENIZER_KEY),
    )


# The manifest, its digest, the golden sample.


def _manifest_span(path: Path, contents: _Contents) -> Span:
    spans = contents.metadata.get(MANIFEST_KEY, [])
    if not contents.has_graph:
        raise ModelFileError(f"{path} holds no graph: it is not an ONNX model, or only a part of one")
    if len(spans) != 1:
        raise ModelFileError(
            f"{path} is an ONNX file with {len(spans)} streamssm manifests, a model has one: "
            "the file was cut short, or not written by streamssm.export"
        )
    return spans[0]


def _check_digest(path: Path, data: Buffer, span: Span, manifest: Manifest) -> None:
    start = digest_start(data, span, manifest.sha256)
    actual = _digest(data, start)
    if actual != manifest.sha256:
        raise IntegrityError(
            f"{path} has sha256 {actual[:16]}..., its manifest records {manifest.sha256[:16]}...: "
            "the file is damaged or was edited; copy or export it again"
        )


def digest_start(data: Buffer, span: Span, digest: str) -> int:
    """Where the digits of a manifest's own hash lie; ``span`` is the manifest's.

    Raises:
        ManifestError: they are not found once.
    """
    text, digits = data[span[0] : span[1]], digest.encode()
    if len(digits) != len(DIGEST_PLACEHOLDER) or text.count(digits) != 1:
        raise ManifestError(
            f"the manifest's sha256 {digest[:16]!r} is not 64 digits found once in it; export the model again"
        )
    return span[0] + text.index(digits)


def _digest(data: Buffer, start: int) -> str:
    """sha256 of the whole file with the digits at ``start`` set to zero."""
    end = start + len(DIGEST_PLACEHOLDER)
    total = hashlib.sha256()
    _update(total, data, 0, start)
    total.update(DIGEST_PLACEHOLDER.encode())
    _update(total, data, end, len(data))
    return total.hexdigest()


def _update(total: hashlib._Hash, data: Buffer, start: int, end: int) -> None:
    for at in range(start, end, _CHUNK):
        total.update(data[at : min(at + _CHUNK, end)])
        if (at - start) % _RELEASED == 0:
            release(data)


def _metadata(data: Buffer, contents: _Contents, key: str) -> bytes | None:
    spans = contents.metadata.get(key)
    return bytes(data[spans[0][0] : spans[0][1]]) if spans else None


def _golden(path: Path, data: Buffer, contents: _Contents) -> bytes | None:
    spans = contents.metadata.get(GOLDEN_KEY)
    if not spans:
        return None
    try:
        return base64.b64decode(data[spans[0][0] : spans[0][1]], validate=True)
    except binascii.Error as error:
        raise ModelFileError(f"{path}: the golden sample is not base64 ({error}); export again") from error


# What a model may contain.


def _check_ops(path: Path, contents: _Contents) -> None:
    foreign = {op for op in contents.ops if op[0] not in ALLOWED_DOMAINS or op in REFUSED_OPS}
    if foreign:
        names = ", ".join(sorted(f"{domain}::{name}" for domain, name in foreign)[:4])
        raise ModelFileError(
            f"{path} uses operators that are not allowed: {names}; "
            f"allowed domains: {', '.join(sorted(ALLOWED_DOMAINS - {''}))}"
        )


def _check_external(path: Path, contents: _Contents, manifest: Manifest) -> None:
    """Only weights of the main graph may lie in another file, and only in one that is recorded:
    anything else would escape the hash, and its path could lead anywhere."""
    if contents.astray is not None:
        raise ModelFileError(f"{path} {contents.astray}")
    try:
        check_places(contents.placed, manifest.external)
    except ModelFileError as error:
        raise ModelFileError(f"{path} {error}") from error


# The walk. Each message kind lists the fields that lead to another kind of interest.

_METADATA, _GRAPH, _NODE, _ATTRIBUTE = "metadata", "graph", "node", "attribute"
_WEIGHT, _TENSOR, _SPARSE = "weight", "tensor", "sparse tensor"
_FUNCTION, _TRAINING, _BODY = "function", "training info", "inner graph"
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: _GRAPH, 14: _METADATA, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _WEIGHT, 15: _SPARSE},
    _BODY: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _BODY, 10: _TENSOR, 11: _BODY, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _BODY, 2: _BODY},
    _WEIGHT: {},
    _TENSOR: {},
    _METADATA: {},
}
#: the string fields of a kind, by meaning
_STRINGS: dict[str, dict[int, str]] = {
    _NODE: {4: "name", 7: "domain"},
    _FUNCTION: {1: "name", 10: "domain"},
    _METADATA: {1: "key", 2: "value"},
}


@dataclass
class _Contents:
    """What the walk collected; metadata values are spans, they can be large. ``astray`` says what
    was found of weights that lie elsewhere and must not."""

    metadata: dict[str, list[Span]] = field(default_factory=dict)
    ops: Counter[tuple[str, str]] = field(default_factory=Counter)
    functions: set[tuple[str, str]] = field(default_factory=set)
    placed: list[Placed] = field(default_factory=list)
    astray: str | None = None
    has_graph: bool = False


def _walk_model(path: Path, data: Buffer) -> _Contents:
    contents = _Contents()
    try:
        _walk(data, 0, len(data), "model", contents, 0)
    except (MalformedError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} {_diagnosis(data, error)}") from error
    return contents


def _walk(data: Buffer, at: int, end: int, kind: str, contents: _Contents, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise MalformedError(f"graphs nested deeper than {_MAX_DEPTH}")
    if kind in (_WEIGHT, _TENSOR):
        _note_place(data, (at, end), kind, contents)
    children, strings = _CHILDREN[kind], _STRINGS.get(kind, {})
    found: dict[str, Span] = {}
    for number, wire, start, stop in fields(data, at, end):
        if wire == 2 and number in children:
            contents.has_graph |= kind == "model" and number == 7
            _walk(data, start, stop, children[number], contents, depth + 1)
        elif wire == 2 and number in strings:
            found[strings[number]] = (start, stop)
    _note(data, kind, found, contents)


def _note_place(data: Buffer, span: Span, kind: str, contents: _Contents) -> None:
    """Record where a tensor lies, if not in the file."""
    try:
        placed = read_placed(data, span)
    except ModelFileError as error:
        contents.astray = contents.astray or str(error)
        return
    if placed is not None and kind == _WEIGHT:
        contents.placed.append(placed)
    elif placed is not None:
        contents.astray = contents.astray or (
            f"keeps a constant in another file, {placed.location!r}; export it as one file"
        )


def _note(data: Buffer, kind: str, found: dict[str, Span], contents: _Contents) -> None:
    """Record a node, a function or a metadata entry."""
    nothing = (0, 0)
    if kind == _METADATA:
        key = text(data, found.get("key", nothing))
        contents.metadata.setdefault(key, []).append(found.get("value", nothing))
    elif kind in (_NODE, _FUNCTION):
        name = (text(data, found.get("domain", nothing)), text(data, found.get("name", nothing)))
        if kind == _NODE:
            contents.ops[name] += 1
        else:
            contents.functions.add(name)


_KNOWN = {
    b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer: run 'git lfs pull'",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page",
    b"{": "JSON text",
}


def _diagnosis(data: Buffer, error: Exception) -> str:
    head = data[:24]
    # every ONNX writer puts the IR version, field 1, first
    if head[:1] == b"\x08":
        return f"is truncated or damaged after {len(data)} bytes: {error}; copy or export it again"
    known = next((what for magic, what in _KNOWN.items() if head.startswith(magic)), None)
    return f"is not an ONNX file: it is {known or f'something that begins with {head!r}'}"
