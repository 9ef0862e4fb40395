"""What TensorRT-RTX does beside running an engine: it finishes compiling it on the GPU.

By default it serves a new shape by a kernel for any shape and goes on to another one when that is
compiled: the same input would give other bits from some step on. So kernels for a shape are compiled before
its first step. They are kept in the user's cache, for the next process and for every context of this one;
TensorRT-RTX itself refuses a cache of another GPU, driver or version.
Source: https://docs.rs/trtx-sys/latest/trtx_sys/nvinfer1/enum.DynamicShapesKernelSpecializationStrategy.html
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamssm.atomic import write_bytes
from streamssm.errors import OutputError


class RuntimeSettings:
    """How contexts of one engine are made; to be kept as long as one of them lives."""

    def __init__(self, module: Any, engine: Any, content: bytes) -> None:
        """``content`` is the engine file's, whose hash names the cache."""
        self.config = engine.create_runtime_config()
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        self.config.set_execution_context_allocation_strategy(strategy)
        eager = module.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache = self.config.create_runtime_cache()
        self._path = _cache_file(hashlib.sha256(content).hexdigest(), str(module.__version__))
        self._saved = b""
        with suppress(OSError):
            self._saved = self._path.read_bytes()
            self._cache.deserialize(self._saved)  # or it stays empty
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what has been compiled, if that is anything new; where nothing can be written, it is
        compiled again next time."""
        content = bytes(self._cache.serialize())
        if content == self._saved:
            return
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, content)
            self._saved = content


def _cache_file(engine: str, version: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "streamssm" / "rtx" / f"{engine[:32]}-{version}.cache"


def settings(module: Any, engine: Any, content: bytes) -> RuntimeSettings | None:
    """The settings, where the module is one that has them."""
    if not hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
        return None
    return RuntimeSettings(module, engine, content)
