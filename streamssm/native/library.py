"""Finds the library of native kernels, checks it, and says whether it serves a model.

Only a library in this package's own folder is ever loaded: it is code, and neither a model nor
the environment may name one. A library that does not fit this machine or this version is
reported once, and models run on their plain-ONNX bodies.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamssm.errors import UsageError

#: what the operators mean; the library holds the same number (kernels/ort/library.cpp)
ABI = 1
DOMAIN = "streamssm"
SWITCH = "STREAMSSM_KERNELS"
SWITCHED_OFF = f"{SWITCH}=off"
_SWITCHES = ("on", "unfused", "off")

_FILES = {"darwin": "libstreamssm_ort.dylib", "win32": "streamssm_ort.dll"}
_FILE = _FILES.get(sys.platform, "libstreamssm_ort.so")


@dataclass(frozen=True)
class Library:
    """A library that fits: its path, the instruction set it uses on this processor, and the
    dtypes that each operator takes."""

    path: Path
    instructions: str
    operators: Mapping[str, tuple[str, ...]]


class Loan:
    """An array that the library may read for as long as this object lives.

    ``number`` names it to a node. Nothing is copied.
    """

    def __init__(self, library: Library, weights: npt.NDArray[np.float32]) -> None:
        functions = ctypes.CDLL(os.fspath(library.path))
        lend = functions.streamssm_ort_lend
        lend.argtypes, lend.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_int64
        take_back = functions.streamssm_ort_take_back
        take_back.argtypes, take_back.restype = (ctypes.c_int64,), None
        self._weights = weights
        self.number: int = lend(weights.ctypes.data, weights.size)
        weakref.finalize(self, take_back, self.number)


@dataclass(frozen=True)
class Kernels:
    """What runs a model's operators: ``library``, or the bodies in the file and the reason why.

    ``fused`` says whether stretches of the graph become one node each where that pays, ``lowered``
    whether operators without a library run through ONNX Runtime's own where that does, ``precision``
    what the matrices of fused blocks are rounded to when the model is opened.
    """

    library: Library | None
    reason: str = ""
    fused: bool = False
    lowered: bool = False
    precision: str = "float32"

    @property
    def switched_off(self) -> bool:
        """Whether the bodies run because they were asked for."""
        return self.library is None and self.reason == f"{SWITCH}=off"

    def __str__(self) -> str:
        """``native (avx512vnni, fused)``, ``native (avx512vnni)``, ``plain ONNX: the reason`` or
        ``plain ONNX (LinearAttention): the reason``."""
        if self.library is None:
            return f"plain ONNX{' (LinearAttention)' if self.lowered else ''}: {self.reason}"
        return f"native ({self.library.instructions}{', fused' if self.fused else ''})"


class _UnfitError(Exception):
    """The library cannot be used; the text says why."""


def choose(op_counts: Iterable[tuple[str, str]]) -> Kernels:
    """The kernels for a model with these ``(domain, operator)`` pairs: native if the library
    fits this machine and covers every operator of ours, so that none is half-used.

    Raises:
        UsageError: STREAMSSM_KERNELS has a value that means nothing.
    """
    chosen = switch()
    if chosen == "off":
        return Kernels(None, SWITCHED_OFF)
    ours = {name for domain, name in op_counts if domain == DOMAIN}
    if not ours:
        return Kernels(None, "the model has no operator with a native kernel")
    found = library()
    if isinstance(found, str):
        return Kernels(None, found)
    missing = sorted(ours - found.operators.keys())
    if missing:
        return Kernels(None, f"no native kernel for {', '.join(missing)}")
    return Kernels(found, fused=chosen == "on")


@cache
def library() -> Library | str:
    """The library, or why there is none; looked for once. One that does not fit is reported
    through the logger ``streamssm``, which writes to stderr unless the program says otherwise."""
    path = _find()
    if path is None:
        return "this installation holds no library; install a wheel that does, or a C++ compiler first"
    try:
        return _load(path)
    except _UnfitError as error:
        logging.getLogger("streamssm").warning("the native kernels are not used: %s", error)
        return str(error)


def switch() -> str:
    """The value of STREAMSSM_KERNELS: on, unfused or off.

    Raises:
        UsageError: it has one that means nothing.
    """
    value = os.environ.get(SWITCH, "on")
    if value not in _SWITCHES:
        raise UsageError(f"{SWITCH}={value!r} is none of {', '.join(_SWITCHES)}")
    return value


def _find() -> Path | None:
    # an editable installation has two folders: the sources, and what was built
    import streamssm.native

    candidates = (Path(folder) / _FILE for folder in streamssm.native.__path__)
    return next((path for path in candidates if path.exists()), None)


def _is_cut_short(path: Path) -> bool:
    """Whether an ELF file ends before its own last table: the loader would crash the process."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF\x02\x01"):
        return head.startswith(b"\x7fELF") and len(head) < 64
    table = int.from_bytes(head[40:48], "little")
    size, count = (int.from_bytes(head[at : at + 2], "little") for at in (58, 60))
    return path.stat().st_size < table + size * count


def _load(path: Path) -> Library:
    if _is_cut_short(path):
        raise _UnfitError(f"{path} is incomplete; install streamssm again")
    try:
        describe = ctypes.CDLL(os.fspath(path)).streamssm_ort_describe
    except (OSError, AttributeError) as error:
        why = str(error).removeprefix(f"{path}: ")
        raise _UnfitError(f"{path} cannot be loaded ({why}); install streamssm again") from error
    describe.argtypes, describe.restype = (), ctypes.c_char_p
    try:
        said = json.loads(describe())
        abi, instructions = said["abi"], said["instructions"]
        operators = {name: tuple(dtypes) for name, dtypes in said["operators"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _UnfitError(f"{path} does not say what it is; install streamssm again") from error
    if abi != ABI:
        raise _UnfitError(f"{path} has version {abi}, this package needs {ABI}; install streamssm again")
    if not instructions:
        raise _UnfitError("this processor has no AVX2")
    return Library(path, instructions, operators)
