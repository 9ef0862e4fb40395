"""The part of the CUDA runtime that a backend needs, through ctypes: streams, memory, copies, graphs.

ONNX Runtime's CUDA provider brings the library into the process; nothing has to be built for it.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.errors import BackendError

Array = npt.NDArray[Any]

_MAJORS = (13, 12)
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_RELAXED = (
    2  # cudaStreamCaptureModeRelaxed: what a library allocates while a graph is captured is its own affair
)
_ANY_WAY = 4  # cudaMemcpyDefault: the addresses say which way
_COPY_NODE = 1  # cudaGraphNodeTypeMemcpy
_ON_DEVICE = (2, 3)  # cudaMemoryTypeDevice, cudaMemoryTypeManaged
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "GetDeviceCount": (POINTER(c_int),),
    "Malloc": (POINTER(c_void_p), c_size_t),
    "Free": (c_void_p,),
    "HostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "FreeHost": (c_void_p,),
    "MemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "MemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "StreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "StreamSynchronize": (c_void_p,),
    "StreamBeginCapture": (c_void_p, c_int),
    "StreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "GraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "GraphLaunch": (c_void_p, c_void_p),
    "GraphExecDestroy": (c_void_p,),
    "GraphDestroy": (c_void_p,),
    "GraphGetNodes": (c_void_p, POINTER(c_void_p), POINTER(c_size_t)),
    "GraphNodeGetType": (c_void_p, POINTER(c_int)),
    "GraphMemcpyNodeGetParams": (c_void_p, c_void_p),
    "PointerGetAttributes": (c_void_p, c_void_p),
    "GetLastError": (),
}


class Cudart:
    """The library. Its functions are called by name, without their prefix, and raise."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, f"cuda{name}")
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        self._describe = library.cudaGetErrorString
        self._describe.argtypes, self._describe.restype = (c_int,), c_char_p

    def call(self, name: str, *arguments: object) -> None:
        """Call a function.

        Raises:
            BackendError: it failed; has the words of CUDA.
        """
        code = self._functions[name](*arguments)
        if code:
            self._functions["GetLastError"]()  # or the next call would report it too
            raise BackendError(f"cuda{name}: {self._describe(code).decode()}")

    def function(self, name: str) -> Callable[..., int]:
        """A function as it is, for calls that must cost little."""
        function: Callable[..., int] = self._functions[name]
        return function

    def devices(self) -> int:
        """How many GPUs there are.

        Raises:
            BackendError: the driver is missing or too old.
        """
        count = c_int()
        self.call("GetDeviceCount", byref(count))
        return count.value


@cache
def cudart() -> Cudart:
    """The runtime that is in the process, or else the newest that is found.

    Raises:
        BackendError: there is none.
    """
    names = [f"libcudart.so.{major}" for major in _MAJORS]
    modes = [os.RTLD_NOLOAD | os.RTLD_LAZY] if hasattr(os, "RTLD_NOLOAD") else []
    for mode in [*modes, ctypes.DEFAULT_MODE]:
        for name in names:
            with suppress(OSError, AttributeError):
                return Cudart(ctypes.CDLL(name, mode=mode))
    raise BackendError(f"{names[0]} is not found; install it: pip install nvidia-cuda-runtime")


def _freed_with(owner: object, name: str, pointer: c_void_p) -> None:
    # at the end of the process the driver frees everything, and may be gone before us
    weakref.finalize(owner, cudart().function(name), pointer).atexit = False


class Buffer:
    """Zeroed device memory, freed with the object."""

    def __init__(self, size: int) -> None:
        runtime, pointer = cudart(), c_void_p()
        runtime.call("Malloc", byref(pointer), max(size, 1))
        self.address: int = pointer.value or 0
        self.size = size
        _freed_with(self, "Free", pointer)
        runtime.call("MemsetAsync", pointer, 0, size, None)
        runtime.call("StreamSynchronize", None)


class _Pinned:
    """Memory of the host that a GPU copies from and to by itself."""

    def __init__(self, size: int) -> None:
        pointer = c_void_p()
        cudart().call("HostAlloc", byref(pointer), max(size, 1), 0)
        assert pointer.value
        _freed_with(self, "FreeHost", pointer)
        self.__array_interface__ = {
            "shape": (max(size, 1),),
            "typestr": "|u1",
            "data": (pointer.value, False),
            "version": 3,
        }


def pinned(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros in pinned memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.asarray(_Pinned(size))
    raw[...] = 0
    return raw[:size].view(dtype).reshape(shape)


class Queue:
    """A CUDA stream: work in order."""

    def __init__(self) -> None:
        self._runtime, self._handle = cudart(), c_void_p()
        self._runtime.call("StreamCreateWithFlags", byref(self._handle), _NON_BLOCKING)

    @property
    def number(self) -> int:
        """The handle as a number."""
        return self._handle.value or 0

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy ``size`` bytes between any two memories."""
        if size:
            self._runtime.call("MemcpyAsync", target, source, size, _ANY_WAY, self._handle)

    def clear(self, target: int, size: int) -> None:
        """Set ``size`` bytes of device memory to zero."""
        if size:
            self._runtime.call("MemsetAsync", target, 0, size, self._handle)

    def wait(self) -> None:
        """Until all that was given to the queue is done."""
        self._runtime.call("StreamSynchronize", self._handle)

    def capture(self, work: Callable[[], None], host: Collection[int]) -> Graph:
        """What ``work`` gives to the queue, not run but as a graph; ``host`` are the addresses in the
        memory of the host that it may copy from and to, again with each launch.

        Raises:
            BackendError: it does something that cannot be captured, or what would be copied from
                memory of the host that may be gone by then.
        """
        self._runtime.call("StreamBeginCapture", self._handle, _RELAXED)
        graph, failed = c_void_p(), True
        try:
            work()
            failed = False
        finally:
            try:
                self._runtime.call("StreamEndCapture", self._handle, byref(graph))
            except BackendError:
                if not failed:
                    raise
        if set(_host_addresses(graph)) - set(host):
            self._runtime.call("GraphDestroy", graph)
            raise BackendError("a part of the model runs on the processor")
        return Graph(self._handle, graph)


class _Copy(Structure):
    """cudaMemcpy3DParms, as far as it is read."""

    _fields_ = (
        ("source_array", c_size_t * 4),
        ("source", c_size_t * 4),
        ("target_array", c_size_t * 4),
        ("target", c_size_t * 4),
        ("rest", c_size_t * 8),
    )


def _host_addresses(graph: c_void_p) -> Iterator[int]:
    """The addresses that a graph's copies read or write in the memory of the host."""
    runtime, count, kind, copy = cudart(), c_size_t(), c_int(), _Copy()
    runtime.call("GraphGetNodes", graph, None, byref(count))
    nodes = (c_void_p * count.value)()
    runtime.call("GraphGetNodes", graph, nodes, byref(count))
    attributes = (c_int * 64)()
    for node in nodes:
        runtime.call("GraphNodeGetType", node, byref(kind))
        if kind.value != _COPY_NODE:
            continue
        runtime.call("GraphMemcpyNodeGetParams", node, byref(copy))
        for address in (copy.source[0], copy.target[0]):
            runtime.call("PointerGetAttributes", byref(attributes), address)
            if attributes[0] not in _ON_DEVICE:
                yield address


class Graph:
    """Captured work, to be launched at one stroke."""

    def __init__(self, queue: c_void_p, graph: c_void_p) -> None:
        runtime, handle = cudart(), c_void_p()
        try:
            runtime.call("GraphInstantiateWithFlags", byref(handle), graph, 0)
        finally:
            runtime.call("GraphDestroy", graph)
        _freed_with(self, "GraphExecDestroy", handle)
        self._arguments = (handle, queue)
        self._runtime = runtime

    def launch(self) -> None:
        """Give the work to the queue.

        Raises:
            BackendError: it was not taken.
        """
        self._runtime.call("GraphLaunch", *self._arguments)


class DeviceArray:
    """A dense array in device memory that is read and written as a whole or by rows.

    Every access copies, and waits until the copy is done.
    """

    def __init__(self, queue: Queue, memory: Buffer, offset: int, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.address = memory.address + offset
        self._queue, self._memory = queue, memory  # which must outlive this

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.copy() if dtype is None else self.copy().astype(dtype)

    def copy(self) -> Array:
        """The content, on the host."""
        return self._read(0, self.shape[0])

    def __getitem__(self, key: Any) -> Array:
        """Rows as numpy would give them, copied."""
        rows = self._rows(key)
        if rows is None:
            part: Array = self.copy()[key]
            return part
        found = self._read(*rows)
        if isinstance(key, int | np.integer):
            found = found[0]
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set rows to what numpy would set them to."""
        rows = self._rows(key)
        if rows is None:
            whole = self.copy()
            whole[key] = value
            key, value, rows = ..., whole, (0, self.shape[0])
        first, last = rows
        if np.ndim(value) == 0 and value == 0:
            self._queue.clear(self.address + first * self.row, (last - first) * self.row)
        else:
            new = np.empty((last - first, *self.shape[1:]), self.dtype)
            new[...] = value
            self._queue.copy(self.address + first * self.row, new.ctypes.data, new.nbytes)
        self._queue.wait()

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return self.nbytes // self.shape[0] if self.shape[0] else 0

    def _rows(self, key: Any) -> tuple[int, int] | None:
        """The rows that a key stands for, if they are neighbours."""
        if key is ...:
            return 0, self.shape[0]
        if isinstance(key, int | np.integer):
            row = range(self.shape[0])[int(key)]
            return row, row + 1
        if isinstance(key, slice):
            first, last, step = key.indices(self.shape[0])
            return (first, max(first, last)) if step == 1 else None
        return None

    def _read(self, first: int, last: int) -> Array:
        found = np.empty((last - first, *self.shape[1:]), self.dtype)
        self._queue.copy(found.ctypes.data, self.address + first * self.row, found.nbytes)
        self._queue.wait()
        return found


def device_arrays(queue: Queue, shapes: Iterable[tuple[tuple[int, ...], str]]) -> tuple[DeviceArray, ...]:
    """Zeros of several shapes and dtypes in one piece of device memory, each at a multiple of 256 bytes."""
    parts, offset = [], 0
    for shape, dtype in shapes:
        parts.append((offset, shape, dtype))
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offset += size + -size % 256
    memory = Buffer(offset)
    return tuple(DeviceArray(queue, memory, at, shape, dtype) for at, shape, dtype in parts)
