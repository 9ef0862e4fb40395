"""Compares the engines of a bundle with the golden vectors, on the device.

Copied into bundles as compare.py; see ``build_on_device.py``.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

GOLDEN, MANIFEST = "golden.safetensors", "manifest.json"
#: what counts as close to zero
_ABSOLUTE = 1e-5
_CUDARTS = ("libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so", "libcudart.so")
_TO_DEVICE, _TO_HOST = 1, 2
_CODES = {"F32": "f", "I64": "q", "float32": "f", "int64": "q"}

#: the file of each engine, and its blocks: one for each of its profiles
Engines = list[tuple[str, list[int]]]
#: shape and values by name
Sample = dict[str, tuple[list[int], "array.array[Any]"]]


class Refusal(Exception):  # noqa: N818
    """What is wrong, and what mends it."""


def say(line: str) -> None:
    """A line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Cuda:
    """The few functions of the CUDA runtime that a comparison needs."""

    def __init__(self) -> None:
        for name in _CUDARTS:
            try:
                self.library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise Refusal("libcudart is not found; is CUDA installed? sudo apt-get install nvidia-jetpack")
        self.stream = ctypes.c_void_p()
        self.call("cudaStreamCreateWithFlags", ctypes.byref(self.stream), ctypes.c_uint(1))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; any error ends the build."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise Refusal(f"{name} fails with error {code}")

    def zeros(self, size: int) -> int:
        """The address of zeroed memory, which lives as long as the process."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        self.call("cudaMemset", pointer, 0, ctypes.c_size_t(max(size, 1)))
        return pointer.value or 0

    def copy(self, target: int, source: int, size: int, way: int) -> None:
        """Copy, and wait for it."""
        places = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self.call("cudaMemcpy", *places, ctypes.c_size_t(size), way)

    def wait(self) -> None:
        """For all that was given to the stream."""
        self.call("cudaStreamSynchronize", self.stream)


def tensors_of(path: str) -> Sample:
    """The tensors of a safetensors file: shape and values by name."""
    data = _read(path)
    (size,) = struct.unpack("<Q", data[:8])
    found: Sample = {}
    for name, entry in json.loads(data[8 : 8 + size].decode()).items():
        if name == "__metadata__":
            continue
        start, stop = (8 + size + place for place in entry["data_offsets"])
        values: array.array[Any] = array.array(_CODES[entry["dtype"]])
        values.frombytes(data[start:stop])
        found[name] = entry["shape"], values
    return found


def verify(trt: Any, logger: Any, folder: str, bound: float, engines: Engines, rows: int) -> None:
    """Run the sample in every block, and compare what comes out."""
    path = os.path.join(folder, GOLDEN)
    if not os.path.exists(path):
        say("not compared: the model has no golden vectors")
        return
    sample = tensors_of(path)
    with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
        manifest = json.load(file)
    cuda, worst = Cuda(), 0.0
    for name, blocks in engines:
        engine = trt.Runtime(logger).deserialize_cuda_engine(_read(os.path.join(folder, name)))
        if engine is None:
            raise Refusal(f"TensorRT does not take {name}, which it has built just now")
        for index, block in enumerate(blocks):
            outputs = Runner(cuda, engine, manifest, index, block, rows).run(sample["x"])
            worst = max([worst] + [compare(output, outputs, sample, block) for output in manifest["outputs"]])
    if not worst <= bound:
        raise Refusal(
            f"the engine is wrong on this device: {worst:.2g} of the largest value, {bound:.2g} is allowed; "
            "it is not used. Report the lines above with the version of JetPack"
        )


def compare(output: Mapping[str, Any], outputs: Mapping[str, Any], sample: Sample, block: int) -> float:
    """The largest difference of an output over the largest magnitude of the sample; nothing where all of
    it is close to zero."""
    dims, wanted = sample["y." + output["name"]]
    row, columns = outputs[output["name"]], product(output["shape"])
    kept = sampled(output["shape"], dims)
    got = [row[frame * columns + column] for frame in range(dims[0]) for column in kept]
    pairs = zip(got, wanted, strict=True)
    largest = max((abs(a - b) if a == a else float("inf") for a, b in pairs), default=0.0)
    scale = max(map(abs, wanted), default=0.0)
    relative = largest / scale if scale else float("inf") if largest else 0.0
    line = "blocks of {}: {} differs by {:.2g}, {:.2g} of its largest value, over {} items"
    say(line.format(block, output["name"], largest, relative, sample["x"][0][0]))
    return 0.0 if largest <= _ABSOLUTE else relative


def sampled(shape: Sequence[int], dims: Sequence[int]) -> Sequence[int]:
    """The columns of an output that the sample holds: all, or evenly spread ones of its last axis."""
    columns, last = product(shape), shape[-1] if shape else 1
    stored = dims[-1] if len(dims) > 1 else 1
    if stored == last:
        return range(columns)
    spread = [round(index * (last - 1) / (stored - 1)) for index in range(stored)]
    return [row * last + column for row in range(columns // last) for column in spread]


def product(sizes: Sequence[int]) -> int:
    """All sizes multiplied."""
    total = 1
    for size in sizes:
        total *= size
    return total


class Runner:
    """One engine on one block: buffers, both sides of the states, an execution context for each."""

    def __init__(
        self, cuda: Cuda, engine: Any, manifest: Mapping[str, Any], index: int, block: int, rows: int
    ) -> None:
        self.cuda, self.block, self.rows, self.manifest = cuda, block, rows, manifest
        spec = manifest["input"]
        self.item = product(spec.get("shape", [])) * itemsize(spec["dtype"])
        self.code = _CODES[spec["dtype"]]
        self.x = cuda.zeros(rows * block * self.item)
        self.outputs: dict[str, tuple[int, int]] = {}
        for output in manifest["outputs"]:
            up, down = output.get("ratio", (1, 1))
            size = block * up // down * product(output["shape"])
            self.outputs[output["name"]] = cuda.zeros(4 * rows * size), size
        states = [s for s in manifest["states"] if 0 not in s["shape"]]
        sizes = [rows * product(s["shape"]) * itemsize(s.get("dtype", "float32")) for s in states]
        sides = [[cuda.zeros(size) for size in sizes] for _ in (0, 1)]
        self.contexts = [self.context(engine, index, states, sides[i], sides[1 - i]) for i in (0, 1)]

    def context(
        self,
        engine: Any,
        index: int,
        states: Sequence[Mapping[str, Any]],
        before: Sequence[int],
        after: Sequence[int],
    ) -> Any:
        """An execution context that reads one side and writes the other."""
        context = engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(index, self.cuda.stream.value or 0):
            raise Refusal("no execution context; is there memory left on the device?")
        spec = self.manifest["input"]
        shapes: dict[str, tuple[int, ...]] = {spec["name"]: (self.rows, self.block, *spec.get("shape", []))}
        addresses = {spec["name"]: self.x}
        for state, old, new in zip(states, before, after, strict=True):
            shapes[state["name"]] = (self.rows, *state["shape"])
            addresses[state["name"]], addresses[state["next"]] = old, new
        addresses |= {name: address for name, (address, _) in self.outputs.items()}
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise Refusal(f"the engine does not take {name} of shape {shape}")
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        return context

    def run(self, sample: tuple[list[int], array.array[Any]]) -> dict[str, array.array[Any]]:
        """The first row of every output, flat, for the sample and as many zeros as fill its last block."""
        dims, values = sample
        each = product(dims[1:])
        collected: dict[str, array.array[Any]] = {name: array.array("f") for name in self.outputs}
        for step, start in enumerate(range(0, dims[0], self.block)):
            piece = values[start * each : (start + self.block) * each]
            piece.extend([0] * (self.block * each - len(piece)))
            whole: array.array[Any] = array.array(self.code, list(piece) * self.rows)
            self.cuda.copy(self.x, whole.buffer_info()[0], len(whole) * whole.itemsize, _TO_DEVICE)
            if not self.contexts[step % 2].execute_async_v3(self.cuda.stream.value or 0):
                raise Refusal("TensorRT failed to run the engine; its own words are above")
            self.cuda.wait()
            for name, (address, size) in self.outputs.items():
                row: array.array[Any] = array.array("f", bytes(4 * size))
                self.cuda.copy(row.buffer_info()[0], address, 4 * size, _TO_HOST)
                collected[name].extend(row)
        return collected


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    return 8 if dtype == "int64" else 4
