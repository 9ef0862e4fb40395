"""Stands in for TensorRT where there is no GPU: the part of its Python interface that streamssm uses, over
the memory of ``cuda.cpp``, computed by ONNX Runtime. An "engine" is the ONNX file itself with its profiles.

It refuses what TensorRT refuses: an engine of another version, a shape outside the profile, a run with an
address missing. ``STANDIN_VERSION`` is its version, ``STANDIN_FAULT`` a factor by which outputs are wrong.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from enum import Enum
from typing import Any

import numpy as np

__version__ = os.environ.get("STANDIN_VERSION", "10.16.1.11")
MAGIC = b"STANDIN\n"

_LIBRARY = ctypes.CDLL(os.environ["STANDIN_CUDA"])
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_LIBRARY.standin_give.argtypes = (_WORK, ctypes.c_void_p)


class TensorIOMode(Enum):
    INPUT, OUTPUT = 1, 2


class DataType(Enum):
    FLOAT, INT64 = 0, 8


class ExecutionContextAllocationStrategy(Enum):
    STATIC, USER_MANAGED = 0, 2


class BuilderFlag(Enum):
    TF32 = 1


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        pass


class Logger(ILogger):
    def __init__(self, severity: int = ILogger.WARNING) -> None:
        self.lines: list[str] = []

    def log(self, severity: int, message: str) -> None:
        self.lines.append(message)


class Registry:
    def get_creator(self, name: str, version: str, namespace: str) -> None:
        return None

    def load_library(self, path: str) -> None:
        raise AssertionError("the stand-in takes no plugins")


def get_plugin_registry() -> Registry:
    return Registry()


# Running.

_DTYPES = {"tensor(float)": (DataType.FLOAT, np.float32), "tensor(int64)": (DataType.INT64, np.int64)}


def pack(onnx: bytes, profiles: list[dict[str, list[list[int]]]], version: str = __version__) -> bytes:
    """An engine: each profile gives least, usual and most shapes of the inputs it leaves open."""
    head = json.dumps({"version": version, "profiles": profiles}).encode()
    return MAGIC + len(head).to_bytes(8, "little") + head + onnx


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        if not data.startswith(MAGIC):
            return self._refuse("Serialization assertion: magic tag does not match")
        size = int.from_bytes(data[8:16], "little")
        head = json.loads(data[16 : 16 + size])
        if head["version"] != __version__:
            return self._refuse(f"engine of version {head['version']}, this is {__version__}")
        return Engine(data[16 + size :], head["profiles"])

    def _refuse(self, why: str) -> None:
        self.logger.log(ILogger.ERROR, why)


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, onnx: bytes, profiles: list[dict[str, Any]]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.profiles = profiles
        self.ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.inputs = {port.name for port in self.session.get_inputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return self.ports[index].name

    def _port(self, name: str) -> Any:
        return next(port for port in self.ports if port.name == name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self._port(name).type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._port(name).shape)

    def create_execution_context(self, how: Any = None) -> Context:
        if hasattr(how, "allocation"):  # a runtime configuration, of TensorRT-RTX
            how.used.append(how.dynamic_shapes_kernel_specialization_strategy)
            how.cache.compiled += 1
            how = how.allocation
        return Context(self, how is ExecutionContextAllocationStrategy.USER_MANAGED)


class Context:
    def __init__(self, engine: Engine, lent: bool) -> None:
        self.engine, self.memory, self.profile = engine, None if lent else 1, None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.work = _WORK(lambda _: self._run())

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.memory = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < max(1, len(self.engine.profiles)):
            return False
        self.profile = self.engine.profiles[index] if self.engine.profiles else {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        least, _, most = self.profile.get(name, (shape, shape, shape))
        fixed = self.engine.get_tensor_shape(name)
        fits = all(size in (-1, have) for size, have in zip(fixed, shape, strict=True))
        inside = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        self.shapes[name] = tuple(shape)
        return fits and inside

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return any(port.name == name for port in self.engine.ports)

    def execute_async_v3(self, stream: int) -> bool:
        if self.memory is None or set(self.addresses) != {port.name for port in self.engine.ports}:
            return False
        return _LIBRARY.standin_give(self.work, None) == 0

    def _run(self) -> None:
        feed = {name: self._view(name, shape).copy() for name, shape in self.shapes.items()}
        names = [port.name for port in self.engine.session.get_outputs()]
        fault = float(os.environ.get("STANDIN_FAULT", "1"))
        for name, value in zip(names, self.engine.session.run(names, feed), strict=True):
            self._view(name, value.shape)[...] = value * fault if value.dtype == np.float32 else value

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = _DTYPES[self.engine._port(name).type][1]
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not size:
            return np.zeros(shape, dtype)
        raw = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


# Building.


class Tensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class Network:
    def __init__(self) -> None:
        self.onnx, self.tensors = b"", []

    @property
    def num_inputs(self) -> int:
        return len(self.tensors)

    def get_input(self, index: int) -> Tensor:
        return self.tensors[index]


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        try:
            engine = Engine(data, [])
        except Exception as error:
            self.error = str(error)
            return False
        self.network.onnx = data
        ports = engine.session.get_inputs()
        self.network.tensors = [Tensor(port.name, engine.get_tensor_shape(port.name)) for port in ports]
        return True

    def get_error(self, index: int) -> str:
        return self.error


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(usual), list(most)]


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return (self.data or f"{__version__} ".encode()) + b"."


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.cache: Cache | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        assert flag is BuilderFlag.TF32

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if cache.data and not cache.data.startswith(f"{__version__} ".encode()):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class Builder:
    def __init__(self, logger: Any) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        return pack(network.onnx, [profile.shapes for profile in config.profiles])
