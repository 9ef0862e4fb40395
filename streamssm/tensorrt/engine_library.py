"""TensorRT for a Python that it has no module for, such as 3.11 on JetPack 6.

``kernels/tensorrt/engine/engine.cpp`` is TensorRT's C++ as plain functions; ``build.sh`` of a bundle builds
it on the device. What is here gives it the names of TensorRT's own module, as far as a backend uses them:
it runs engines, and builds none.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from enum import Enum
from pathlib import Path
from typing import Any

from streamssm.errors import BackendError

#: where the library is, if not beside this package
PATH = "STREAMSSM_TENSORRT_ENGINE"
FILE = "libstreamssm_engine.so"
ABI = 1
_MOST_DIMS = 8
#: arguments and result of each function
_FUNCTIONS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "engine_abi": ((), c_int32),
    "engine_tensorrt": ((), c_int32),
    "engine_error": ((), c_char_p),
    "engine_open": ((c_char_p, c_size_t), c_void_p),
    "engine_close": ((c_void_p,), None),
    "engine_memory": ((c_void_p,), c_int64),
    "engine_tensors": ((c_void_p,), c_int32),
    "engine_tensor": ((c_void_p, c_int32), c_char_p),
    "engine_mode": ((c_void_p, c_char_p), c_int32),
    "engine_dtype": ((c_void_p, c_char_p), c_int32),
    "engine_dims": ((c_void_p, c_char_p, POINTER(c_int64)), c_int32),
    "engine_context": ((c_void_p,), c_void_p),
    "context_close": ((c_void_p,), None),
    "context_memory": ((c_void_p, c_void_p, c_int64), None),
    "context_profile": ((c_void_p, c_int32, c_void_p), c_int32),
    "context_shape": ((c_void_p, c_char_p, POINTER(c_int64), c_int32), c_int32),
    "context_address": ((c_void_p, c_char_p, c_void_p), c_int32),
    "context_run": ((c_void_p, c_void_p), c_int32),
    "plugin_known": ((c_char_p, c_char_p, c_char_p), c_int32),
    "plugin_load": ((c_char_p,), c_int32),
}


class TensorIOMode(Enum):
    """Which way a tensor goes."""

    INPUT, OUTPUT = 1, 2


class DataType(Enum):
    """Types by TensorRT's numbers; those that no engine of ours has are left out."""

    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class ExecutionContextAllocationStrategy(Enum):
    """The one that is used."""

    USER_MANAGED = 2


class ILogger:
    """Severities; the library keeps the last error itself."""

    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


def find_library() -> Path | None:
    """The library, where ``STREAMSSM_TENSORRT_ENGINE`` says or beside this package."""
    named = os.environ.get(PATH)
    if named is not None:
        return Path(named)
    import streamssm.native

    places = (Path(folder) / FILE for folder in streamssm.native.__path__)
    return next((place for place in places if place.is_file()), None)


class EngineLibrary:
    """Stands where the module ``tensorrt`` would."""

    __name__ = "tensorrt"
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    ILogger = ILogger

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            BackendError: it cannot be loaded, or is of another version.
        """
        try:
            library = ctypes.CDLL(os.fspath(path))
            self.functions = {name: getattr(library, name) for name in _FUNCTIONS}
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"{path} cannot be loaded ({error}); build it: sh build.sh in a bundle"
            ) from error
        for name, (arguments, result) in _FUNCTIONS.items():
            self.functions[name].argtypes, self.functions[name].restype = arguments, result
        if self.call("engine_abi") != ABI:
            raise BackendError(
                f"{path} has version {self.call('engine_abi')}, this package needs {ABI}; build it anew"
            )
        number = int(self.call("engine_tensorrt"))
        self.__version__ = f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function."""
        return self.functions[name](*arguments)

    @property
    def error(self) -> str:
        """What TensorRT said last."""
        return str(self.call("engine_error").decode(errors="replace"))

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        """As TensorRT's class of this name."""
        return Runtime(self, logger)

    def get_plugin_registry(self) -> Registry:
        """As TensorRT's function of this name."""
        return Registry(self)


class Registry:
    """The plugins that TensorRT knows."""

    def __init__(self, library: EngineLibrary) -> None:
        self._library = library

    def get_creator(self, name: str, version: str, namespace: str) -> bool | None:
        """Something, if there is such a plugin."""
        return (
            bool(self._library.call("plugin_known", *(x.encode() for x in (name, version, namespace))))
            or None
        )

    def load_library(self, path: str) -> bool:
        """Whether TensorRT took the library."""
        return bool(self._library.call("plugin_load", os.fsencode(path)))


class Runtime:
    """Reads engines."""

    def __init__(self, library: EngineLibrary, logger: Any) -> None:
        self._library, self._logger = library, logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        """An engine, or None; the reason goes to the logger."""
        handle = self._library.call("engine_open", data, len(data))
        if not handle:
            self._logger.log(ILogger.ERROR, self._library.error)
            return None
        return Engine(self._library, handle, self._logger)


class Engine:
    """A deserialised engine."""

    def __init__(self, library: EngineLibrary, handle: int, logger: Any) -> None:
        self._library, self._handle, self.logger = library, handle, logger
        weakref.finalize(self, library.functions["engine_close"], handle).atexit = False

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that a context works in."""
        return int(self._library.call("engine_memory", self._handle))

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        return int(self._library.call("engine_tensors", self._handle))

    def get_tensor_name(self, index: int) -> str:
        """The name of one of them."""
        return str(self._library.call("engine_tensor", self._handle, index).decode())

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Which way it goes."""
        return TensorIOMode(self._library.call("engine_mode", self._handle, name.encode()))

    def get_tensor_dtype(self, name: str) -> DataType | int:
        """Its type, or TensorRT's number of one that is unknown here."""
        number = int(self._library.call("engine_dtype", self._handle, name.encode()))
        return DataType(number) if number in {member.value for member in DataType} else number

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Its shape, -1 where it is open."""
        dims = (c_int64 * _MOST_DIMS)()
        return tuple(dims[: self._library.call("engine_dims", self._handle, name.encode(), dims)])

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context | None:
        """A context that is given its memory by its user; None if there is none."""
        handle = self._library.call("engine_context", self._handle)
        return Context(self._library, handle, self) if handle else None


class Context:
    """An execution context; it keeps its engine alive."""

    def __init__(self, library: EngineLibrary, handle: int, engine: Engine) -> None:
        self._library, self._handle, self._engine = library, handle, engine
        weakref.finalize(self, library.functions["context_close"], handle).atexit = False

    def set_device_memory(self, address: int, size: int) -> None:
        """Where it works."""
        self._library.call("context_memory", self._handle, address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Whether there is such a profile."""
        return bool(self._library.call("context_profile", self._handle, index, stream))

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """Whether the profile holds it."""
        dims = (c_int64 * len(shape))(*shape)
        return bool(self._library.call("context_shape", self._handle, name.encode(), dims, len(shape)))

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Whether there is such a tensor."""
        return bool(self._library.call("context_address", self._handle, name.encode(), address))

    def execute_async_v3(self, stream: int) -> bool:
        """Whether the work was given to the stream."""
        done = bool(self._library.call("context_run", self._handle, stream))
        if not done:
            self._engine.logger.log(ILogger.ERROR, self._library.error)
        return done
