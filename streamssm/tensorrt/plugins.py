"""Finds the library of TensorRT plugins, and has TensorRT know them."""

from __future__ import annotations

import ctypes
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamssm.errors import BackendError

#: a library that lies elsewhere, such as where a bundle was built
PATH = "STREAMSSM_TENSORRT_PLUGINS"
FILE = "libstreamssm_tensorrt.so"
NAMESPACE = "streamssm"
_MAKE = "&& cmake --build build/tensorrt -t streamssm_tensorrt"
_BUILD = f"cmake -S kernels/tensorrt -B build/tensorrt {_MAKE}"


@dataclass(frozen=True)
class PluginLibrary:
    """What the library says of itself: the TensorRT of its headers, the GPUs it has code for, its plugins."""

    path: Path
    version: str
    tensorrt: str
    archs: str
    plugin_version: str
    plugins: tuple[str, ...]

    def runs_on(self, sm: int) -> bool:
        """Whether there is code for a GPU: for it, for an older one of its kind, or to be translated, which
        87 allows and 87-real does not. What cannot be read, as ``native``, is left to CUDA to judge."""
        found = [
            (int(part[1]), part[2] == "-real") for part in re.finditer(r"(\d+)[a-z]?(-\w+)?", self.archs)
        ]
        fits = (old == sm or (old < sm and (not real or old // 10 == sm // 10)) for old, real in found)
        return not found or any(fits)


def build_for(sm: int) -> str:
    """The command that builds the library for one kind of GPU."""
    return f"cmake -S kernels/tensorrt -B build/tensorrt -DCMAKE_CUDA_ARCHITECTURES={sm} {_MAKE}"


def find_plugins() -> PluginLibrary:
    """The library: where ``STREAMSSM_TENSORRT_PLUGINS`` says, or beside this package.

    Raises:
        BackendError: there is none, or it is not what it should be.
    """
    path = _path()
    try:
        describe = ctypes.CDLL(os.fspath(path)).streamssm_tensorrt_describe
        describe.argtypes, describe.restype = (), ctypes.c_char_p
        said = json.loads(describe())
        texts = {key: str(said[key]) for key in ("version", "tensorrt", "archs", "plugin_version")}
        return PluginLibrary(path, plugins=tuple(map(str, said["plugins"])), **texts)
    except (OSError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise BackendError(
            f"the plugins in {path} cannot be loaded ({error}); build them: {_BUILD}"
        ) from error


def load_plugins(module: Any) -> PluginLibrary:
    """Have the TensorRT of ``module`` know the plugins; more than once does no harm.

    Raises:
        BackendError: there is no library, or it is for another TensorRT.
    """
    found = find_plugins()
    version = str(module.__version__)
    if found.tensorrt.split(".")[0] != version.split(".")[0]:
        raise BackendError(
            f"the plugins in {found.path} are built for TensorRT {found.tensorrt}, {version} is installed; "
            f"build them with its headers: {_BUILD}"
        )
    registry = module.get_plugin_registry()
    if _missing(registry, found):
        registry.load_library(os.fspath(found.path))
    missing = _missing(registry, found)
    if missing:
        raise BackendError(
            f"TensorRT {version} did not take the plugins {', '.join(missing)} of {found.path}; "
            f"build it: {_BUILD}"
        )
    return found


def _missing(registry: Any, found: PluginLibrary) -> list[str]:
    known = (registry.get_creator(name, found.plugin_version, NAMESPACE) for name in found.plugins)
    return [name for name, creator in zip(found.plugins, known, strict=True) if creator is None]


def _path() -> Path:
    named = os.environ.get(PATH)
    if named is not None:
        if Path(named).is_file():
            return Path(named)
        raise BackendError(f"{PATH} names {named}, which is no file; build the plugins: {_BUILD}")
    # an editable installation has two folders: the sources, and what was built
    import streamssm.native

    for folder in streamssm.native.__path__:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise BackendError(
        f"this installation holds no {FILE}; build it ({_BUILD}) and name it: export {PATH}=..."
    )
