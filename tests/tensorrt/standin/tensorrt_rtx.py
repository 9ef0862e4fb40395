"""Stands in for TensorRT-RTX: the stand-in for TensorRT, and what only TensorRT-RTX has at run time."""

from __future__ import annotations

import importlib.util
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

_spec = importlib.util.spec_from_file_location("standin_base", Path(__file__).parent / "tensorrt.py")
assert _spec is not None
assert _spec.loader is not None
_base = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_base)
globals().update({name: value for name, value in vars(_base).items() if not name.startswith("__")})
__version__ = _base.__version__


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class RuntimeCache:
    """Counts what would have been compiled."""

    def __init__(self) -> None:
        self.compiled = 0

    def serialize(self) -> bytes:
        return f"{__version__} {min(self.compiled, 2)}".encode()

    def deserialize(self, blob: bytes) -> bool:
        version, count = blob.decode().split()
        if version != __version__:
            return False
        self.compiled = int(count)
        return True


class RuntimeConfig:
    """As TensorRT-RTX's, with its defaults."""

    configs: ClassVar[list[RuntimeConfig]] = []

    def __init__(self) -> None:
        self.allocation: Any = _base.ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache, self.used = RuntimeCache(), []
        self.configs.append(self)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


_base.Engine.create_runtime_config = lambda self: RuntimeConfig()
