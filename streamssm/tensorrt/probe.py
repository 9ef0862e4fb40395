"""What one core of this machine can do, measured in about a second: bytes read from memory, and float32
operations of a large product, by the library that will run the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamssm.protobuf import encode_message, encode_number
from streamssm.tensorrt.estimate import Core

#: read at a time, more than most caches hold
_READ = 1 << 28
#: M, K, N: some hundred items through a projection of a model of 130M parameters
_GEMM = (512, 768, 3072)
_REPEATS = 5
_FLOAT = 1


def this_core() -> Core:
    """The core that this process runs on; other work on the machine makes it look slower.

    Raises:
        BackendError: onnxruntime is not usable.
    """
    return Core(bandwidth=_READ / _fastest(_reader()), arithmetic=2.0 * np.prod(_GEMM) / _fastest(_product()))


def _fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few runs, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _reader() -> Callable[[], Any]:
    data = np.ones(_READ // 4, np.float32)
    return data.max  # one thread, wide loads, nothing written


def _product() -> Callable[[], Any]:
    from streamssm.backends.cpu import import_onnxruntime

    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])
    rows, inner, columns = _GEMM
    feed = {"a": np.ones((rows, inner), np.float32), "b": np.ones((inner, columns), np.float32)}
    return lambda: session.run(None, feed)


def _model() -> bytes:
    """An ONNX file with one MatMul of two inputs. Field numbers are those of ``onnx.proto``."""
    rows, inner, columns = _GEMM
    node = b"".join(encode_message(1, name) for name in (b"a", b"b"))
    node += encode_message(2, b"c") + encode_message(4, b"MatMul")
    graph = encode_message(1, node) + encode_message(2, b"product")
    graph += encode_message(11, _port("a", (rows, inner))) + encode_message(11, _port("b", (inner, columns)))
    graph += encode_message(12, _port("c", (rows, columns)))
    return encode_number(1, 8) + encode_message(8, encode_number(2, 17)) + encode_message(7, graph)


def _port(name: str, dims: Sequence[int]) -> bytes:
    shape = b"".join(encode_message(1, encode_number(1, size)) for size in dims)
    tensor = encode_number(1, _FLOAT) + encode_message(2, shape)
    return encode_message(1, name.encode()) + encode_message(2, encode_message(1, tensor))
