"""What this core can do: read bandwidth beyond the cache, and the rate of its best matrix product."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sidebyside.wire import Call, CannotError, serve

#: read at a time; no cache of today's holds it
READ_BYTES = 2**30
#: M, K, N of the matrix product: 512 items through the first projection of a 130M model
GEMM = (512, 768, 3072)
GEMM_FLOPS = 2 * GEMM[0] * GEMM[1] * GEMM[2]


class Machine:
    """Steps like a peer's; "read" in a compiled loop, "gemv" in the BLAS of numpy."""

    versions = ("numpy", "onnxruntime")

    def __init__(self, shape: object, precision: str, folder: Path):
        self.folder = folder

    def prepare(self) -> None:
        """Compile the reading loop, build the product's graph."""
        self._library()
        path = self.folder / "gemm.onnx"
        if path.exists():
            return
        from onnx import TensorProto, helper, numpy_helper, save

        M, K, N = GEMM
        weight = np.random.default_rng(0).standard_normal((K, N), np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "gemm",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [M, K])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [M, N])],
            [numpy_helper.from_array(weight, "w")],
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)

    def open(self) -> None:
        """Nothing is held between cases but the big array, made when it is first read."""
        self.big: np.ndarray | None = None

    def facts(self) -> dict[str, Any]:
        """How reading is measured."""
        return {"read": "compiled loop" if self._library() else "no C compiler: numpy's gemv stands in"}

    def start(self, case: str) -> tuple[Call, Call]:
        """What is timed."""
        steps: dict[str, Callable[[], Call]] = {
            "read": self._read,
            "gemv": self._gemv,
            "spin": self._spin,
            "gemm-numpy": self._gemm_numpy,
            "gemm-ort": self._gemm_ort,
        }
        return steps[case](), lambda: None

    def _data(self) -> np.ndarray:
        if self.big is None:
            raw = np.ones(READ_BYTES // 4 + 16, np.float32)
            self.big = raw[-raw.ctypes.data % 64 // 4 :][: READ_BYTES // 4]  # whole cache lines
        return self.big

    def _read(self) -> Call:
        library, data = self._library(), self._data()
        if library is None:
            return self._gemv()
        function = ctypes.CDLL(str(library)).streamssm_read
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_float
        return lambda: function(data.ctypes.data, data.size)

    def _spin(self) -> Call:
        """The same few microseconds of work each time: what varies is the machine."""
        a, b = np.ones((96, 96), np.float32), np.ones((96, 96), np.float32)
        out = np.empty((96, 96), np.float32)
        return lambda: np.dot(a, b, out=out)

    def _gemv(self) -> Call:
        matrix = self._data().reshape(-1, 4096)
        vector, out = np.ones(4096, np.float32), np.empty(len(matrix), np.float32)
        return lambda: np.dot(matrix, vector, out=out)

    def _gemm_numpy(self) -> Call:
        M, K, N = GEMM
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
        out = np.empty((M, N), np.float32)
        return lambda: np.dot(a, b, out=out)

    def _gemm_ort(self) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = str(self.folder / "gemm.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(0).standard_normal(GEMM[:2], np.float32)
        return lambda: session.run(None, {"x": x})

    def _library(self) -> Path | None:
        """The compiled loop; None without a compiler."""
        source = Path(__file__).with_name("read.c")
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
        path = self.folder / f"read-{digest}.so"
        if path.exists() or compiler is None:
            return path if path.exists() else None
        command = [compiler, "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", str(source)]
        done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotError(f"{compiler} failed: {done.stderr[-300:]}")
        return path


if __name__ == "__main__":
    serve(Machine)
