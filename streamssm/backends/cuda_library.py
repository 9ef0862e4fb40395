"""Finds the library of CUDA kernels beside this package, and says whether it serves a model."""

from __future__ import annotations

import ctypes
import json
import logging
import os
from collections.abc import Iterable
from ctypes import Structure, c_char_p, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streamssm.errors import BackendError
from streamssm.native import Kernels, Library
from streamssm.native.library import DOMAIN, SWITCHED_OFF, switch

#: what the functions mean; the library holds the same number (kernels/ort/cuda_library.cpp)
ABI = 2
_FILE = "libstreamssm_cuda.so"


class KeptState(Structure):
    """One state of all rows of a batch; see kernels/cuda/api.h."""

    _fields_ = [("source", c_void_p), ("target", c_void_p), ("bytes", c_int64)]


@dataclass(frozen=True)
class CudaKernels(Kernels):
    """What runs a model's operators on a GPU."""

    def __str__(self) -> str:
        """``native (cuda, fused, float16)``, ``native (cuda)``, or ``plain ONNX: the reason``."""
        if self.library is None:
            return f"plain ONNX: {self.reason}"
        return f"native (cuda, fused, {self.precision})" if self.fused else "native (cuda)"


class KeepRows:
    """The kernel that keeps the states of rows which take no part in a step."""

    def __init__(self, path: Path) -> None:
        self._call = ctypes.CDLL(os.fspath(path)).streamssm_cuda_keep_rows
        self._call.argtypes = (c_void_p, c_int64, c_void_p, c_int64, c_void_p)
        self._call.restype = c_char_p

    def __call__(self, states: int, count: int, active: int, rows: int, queue: int) -> None:
        """Copy ``count`` states, an array of :class:`KeptState`, of the rows whose byte at ``active``
        is 0; both addresses are of device memory.

        Raises:
            BackendError: it could not be launched.
        """
        reason = self._call(states, count, active, rows, queue)
        if reason is not None:
            raise BackendError(f"the states of idle rows cannot be kept: {reason.decode()}")


def choose(op_counts: Iterable[tuple[str, str]]) -> CudaKernels:
    """The kernels for a model with these ``(domain, operator)`` pairs: native if the library covers
    every operator of ours, so that none is half-used; ``fused`` if whole blocks may become one node.

    Raises:
        UsageError: STREAMSSM_KERNELS has a value that means nothing.
    """
    chosen = switch()
    if chosen == "off":
        return CudaKernels(None, SWITCHED_OFF)
    ours = {name for domain, name in op_counts if domain == DOMAIN}
    found = library()
    if isinstance(found, str):
        return CudaKernels(None, found)
    missing = sorted(ours - found.operators.keys())
    if missing:
        return CudaKernels(None, f"no CUDA kernel for {', '.join(missing)}")
    return CudaKernels(found, fused=chosen == "on")


@cache
def library() -> Library | str:
    """The library, or why there is none; looked for once, and reported once if it does not fit."""
    # an editable installation has two folders: the sources, and what was built
    import streamssm.native

    candidates = (Path(folder) / _FILE for folder in streamssm.native.__path__)
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        return f"this installation holds no {_FILE}; build it with nvcc: make cuda"
    try:
        describe = ctypes.CDLL(os.fspath(path)).streamssm_cuda_describe
        describe.argtypes, describe.restype = (), c_char_p
        said = json.loads(describe())
        abi, archs = said["abi"], str(said["archs"])
        operators = {name: tuple(dtypes) for name, dtypes in said["operators"].items()}
    except (OSError, AttributeError, ValueError, TypeError, KeyError) as error:
        return _report(f"{path} cannot be loaded ({error}); build it again: make cuda")
    if abi != ABI:
        return _report(f"{path} has version {abi}, this package needs {ABI}; build it again: make cuda")
    return Library(path, f"cuda {archs}", operators)


def _report(reason: str) -> str:
    logging.getLogger("streamssm").warning("the CUDA kernels are not used: %s", reason)
    return reason
