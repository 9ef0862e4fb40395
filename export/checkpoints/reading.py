"""A checkpoint folder as it lies on the disk: its config, and its tensors read on demand.

Weights are ``model.safetensors``, its shards with their index, ``consolidated.safetensors``
(Mistral), ``pytorch_model.bin`` or its shards. A pickle is opened with ``weights_only`` and so
may hold tensors and nothing that runs. Files are mapped, never read whole: one tensor at a time
is in memory.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streamssm.errors import ExportError

CONFIG_FILES = ("config.json", "params.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin", "consolidated.safetensors")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

#: dtypes of checkpoints, by the names in the head of a safetensors file
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Described:
    """What a tensor is without reading it; ``dtype`` is a name where torch has none for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    file: str


class Weights(Mapping[str, Tensor]):
    """Tensor name -> tensor, read anew at each look-up; ``described`` reads nothing but heads.

    ``spellings`` are patterns in names, with what they are replaced by.
    """

    def __init__(self, files: Mapping[str, _File], spellings: Mapping[str, str] | None = None):
        self._files = files
        self._stored: dict[str, str] = {}
        for stored in files:
            name = stored
            for pattern, new in (spellings or {}).items():
                name = re.sub(pattern, new, name)
            if name in self._stored:
                raise ExportError(f"tensors {stored} and {self._stored[name]} are two for the same weight")
            self._stored[name] = stored

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, name: str, index: int | None) -> Tensor:
        """A tensor, or one entry of its first axis."""
        stored = self._stored[name]
        return self._files[stored].read(stored, index)

    def described(self, name: str) -> Described:
        """Shape, dtype and file of one tensor."""
        stored = self._stored[name]
        return self._files[stored].described(stored)

    def stored(self, name: str) -> str:
        """The name as the file has it."""
        return self._stored.get(name, name)

    def respelled(self, spellings: Mapping[str, str]) -> Weights:
        """The same tensors under other names."""
        return Weights(self._files, spellings)


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint's config.json, or params.json where there is no other, and which it is.

    Raises:
        ExportError: there is none, or it is not a JSON object.
    """
    path = next((folder / name for name in CONFIG_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ExportError(f"{folder} has no {' or '.join(CONFIG_FILES)}; give the folder of a checkpoint")
    return read_json(path), path.name


def read_end(folder: Path, config: dict[str, Any], vocabulary: int) -> tuple[int, ...]:
    """The tokens that end a text: of generation_config.json if it says any, else of the config."""
    generation = folder / "generation_config.json"
    said = read_json(generation).get("eos_token_id") if generation.is_file() else None
    said = config.get("eos_token_id") if said is None else said
    tokens = said if isinstance(said, list) else [said]
    # configs name tokens that their model has not, when vocabularies were cut
    return tuple(token for token in tokens if type(token) is int and 0 <= token < vocabulary)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ExportError: unreadable, not JSON, or something else than an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ExportError(f"{path} is not valid JSON: {error}; download it again") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} holds a {type(found).__name__}, not an object of keys")
    return found


def open_weights(folder: Path) -> Weights:
    """The tensors of a checkpoint folder, whichever of the known layouts it has.

    Raises:
        ExportError: no weights, an unreadable file, or an index that does not fit its files.
    """
    for single, index in zip(SINGLE_FILES, (*INDEX_FILES, None), strict=True):
        if (folder / single).is_file():
            file = _open(folder / single)
            return Weights(dict.fromkeys(file.names, file))
        if index is not None and (folder / index).is_file():
            return _sharded(folder, folder / index)
    known = ", ".join((*SINGLE_FILES, *INDEX_FILES))
    raise ExportError(f"{folder} holds no weights; one of {known} must be there")


def _sharded(folder: Path, index: Path) -> Weights:
    """The shards that an index names; each must hold exactly what the index says of it."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise ExportError(f"{index} has no weight_map from tensors to files; download it again")
    shards: dict[str, _File] = {}
    for name in sorted(set(placed.values())):
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ExportError(f"{index} points to {name!r}; shards must lie in the checkpoint's own folder")
        if not (folder / name).is_file():
            raise ExportError(f"{folder / name} is missing, but {index.name} names it; download it again")
        shards[name] = _open(folder / name)
    for tensor, file in placed.items():
        if tensor not in shards[file].names:
            raise ExportError(f"{tensor} is not in {file}, where {index.name} says it is")
    for file, shard in shards.items():
        astray = sorted(name for name in shard.names if placed.get(name) != file)
        if astray:
            raise ExportError(f"{file} holds {astray[0]}, which {index.name} does not place there")
    return Weights({tensor: shards[file] for tensor, file in placed.items()})


class _File:
    """One file of tensors."""

    names: frozenset[str]

    def described(self, name: str) -> Described:
        raise NotImplementedError

    def read(self, name: str, index: int | None) -> Tensor:
        raise NotImplementedError


def _open(path: Path) -> _File:
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path)


class _Safetensors(_File):
    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.names = frozenset(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise ExportError(
                f"{path} is not a readable safetensors file: {error}; download it again"
            ) from error

    def described(self, name: str) -> Described:
        head = self._file.get_slice(name)
        dtype = head.get_dtype()
        return Described(tuple(head.get_shape()), _DTYPES.get(dtype, dtype), self._path.name)

    def read(self, name: str, index: int | None) -> Tensor:
        # opened anew: the memory that the file is mapped to goes with the tensor
        with safe_open(self._path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name) if index is None else file.get_slice(name)[index]
        return tensor


class _Pickle(_File):
    def __init__(self, path: Path):
        self._path = path
        self._tensors, self._mapped = _unpickle(path)
        self.names = frozenset(self._tensors)

    def described(self, name: str) -> Described:
        tensor = self._tensors[name]
        return Described(tuple(tensor.shape), tensor.dtype, self._path.name)

    def read(self, name: str, index: int | None) -> Tensor:
        tensor = self._tensors[name] if index is None else self._tensors[name][index]
        if not self._mapped:
            return tensor
        copy = tensor.clone()
        _forget(tensor)
        return copy


def _forget(tensor: Tensor) -> None:
    """Let go of the memory that holds what was read of a mapped file; it is read anew if need be."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None:
        storage = tensor.untyped_storage()
        start = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = storage.data_ptr() + storage.nbytes() - start
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _unpickle(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a pickle, and whether they are mapped from the file."""
    try:
        # the old format, which is no zip archive, cannot be mapped
        mapped = torch.serialization._is_zipfile(path.open("rb"))
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ExportError(f"{path} wants more than tensors and was not opened: {_unsafe(error)}") from error
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise ExportError(f"{path} is not a readable checkpoint: {error}; download it again") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} holds a {type(found).__name__}, not a state dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ExportError(f"{path}: {name!r} is a {kind}, not a tensor by name; save a state dict")
    return found, mapped


def _unsafe(error: Exception) -> str:
    """The line of torch's long message that names what the pickle asked for."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])
