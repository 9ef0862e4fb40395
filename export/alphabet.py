"""What a model's tokens stand for, checked before it goes into a file. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx

from streamssm.errors import ExportError, ModelFileError, SourceError
from streamssm.manifest import TOKENIZER_KEY, Alphabet
from streamssm.tokenizer.packed import LARGEST, pack

Tokenizer = str | os.PathLike[str] | bytes | None


def read_alphabet(
    alphabet: Alphabet | None, tokenizer: Tokenizer, end: Sequence[int], vocabulary: int | None
) -> tuple[Alphabet, bytes | None]:
    """The alphabet that the manifest names, and the tokenizer.json that the file carries.

    ``tokenizer`` is a path of one, a folder with one, or its content.

    Raises:
        ExportError: the tokenizer cannot be read, has tokens that the model lacks, or contradicts
            ``alphabet``.
    """
    if any(token < 0 or token >= (vocabulary or 0) for token in end):
        raise ExportError(f"end = {list(end)} is not all among the model's {vocabulary or 0} tokens")
    if tokenizer is None:
        if alphabet == "tokenizer":
            raise ExportError("alphabet = 'tokenizer' needs tokenizer=, a tokenizer.json")
        return alphabet or "", None
    if alphabet not in (None, "", "tokenizer"):
        raise ExportError(f"alphabet = {alphabet!r} contradicts tokenizer=; give one of them")
    data = tokenizer if isinstance(tokenizer, bytes) else _read(Path(tokenizer))
    _check(data, vocabulary)
    return "tokenizer", data


def attach_tokenizer(proto: onnx.ModelProto, data: bytes | None) -> None:
    """Put a tokenizer.json into a graph's metadata; ``serialise`` keeps it there."""
    if data is not None:
        proto.metadata_props.append(onnx.StringStringEntryProto(key=TOKENIZER_KEY, value=pack(data)))


def _read(path: Path) -> bytes:
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"the tokenizer {path} cannot be read: {error.strerror}; check the path") from error


def _check(data: bytes, vocabulary: int | None) -> None:
    """Open the tokenizer as the runtime will."""
    from streamssm.tokenizer.library import TextTokenizer

    if len(data) > LARGEST:
        raise ExportError(f"the tokenizer has {len(data)} bytes; at most {LARGEST} are read")
    try:
        size = TextTokenizer(data).size
    except (ModelFileError, SourceError) as error:
        raise ExportError(str(error)) from error
    if size > (vocabulary or 0):
        raise ExportError(
            f"the tokenizer has tokens up to {size - 1}, the model has {vocabulary or 0}: "
            "they do not belong together"
        )
