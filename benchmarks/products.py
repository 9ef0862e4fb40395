"""Our matrix products beside ONNX Runtime's, on one thread: what decides when a stretch is fused.

    python benchmarks/products.py

For each size and each kind of weights the same product runs as one node of ONNX Runtime (MatMul,
MatMulNBits at accuracy_level 4 in blocks of 128) and inside one node of ours, in turns. Printed are
our median and the ratio of ONNX Runtime's to it: above 1 ours is faster. The rule that follows
from it is in streamssm/native/fusion.py.
"""

from __future__ import annotations

import itertools
import statistics
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from streamssm.backends.cpu import import_onnxruntime
from streamssm.native import Loan, fusion
from streamssm.native.library import Library, library

SIZES = ((80, 320), (160, 80), (768, 3072), (1536, 768), (768, 50280))
ROWS = (1, 16, 176, 512)
SECONDS = 0.3
BLOCK = 128


def model(K: int, N: int, kind: str, fusable: bool) -> bytes:
    """x [B, T, K] -> y [B, T, N]; behind a convolution of width 2, or nothing would be fused."""
    generator = np.random.default_rng(0)
    tensors = {"taps": np.ones((2, K), np.float32), "zero": np.zeros(K, np.float32)}
    if kind == "float32":
        tensors["W"] = generator.standard_normal((K, N)).astype(np.float32)
        product = helper.make_node("MatMul", ["x1", "W"], ["y"])
    else:
        bits, blocks = int(kind[3:]), -(-K // BLOCK)
        tensors["W"] = generator.integers(0, 256, (N, blocks, BLOCK * bits // 8)).astype(np.uint8)
        tensors["s"] = generator.random((N, blocks)).astype(np.float32)
        sizes = {"K": K, "N": N, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
        product = helper.make_node("MatMulNBits", ["x1", "W", "s"], ["y"], domain="com.microsoft", **sizes)
    conv = helper.make_node(
        "CausalConv1d",
        ["x", "taps", "zero", "state"],
        ["x0", "next"],
        domain="streamssm",
        silu=0,
    )
    between = helper.make_node("Identity" if fusable else "Neg", ["x0"], ["x1"])
    ends = {"x": ["b", "t", K], "state": ["b", 1, K], "y": ["b", "t", N], "next": ["b", 1, K]}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ends.items()]
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph([conv, between, product], "g", ports[:2], ports[2:], stored)
    opsets = [helper.make_opsetid(name, version) for name, version in (("", 21), ("com.microsoft", 1))]
    opsets.append(helper.make_opsetid("streamssm", 1))
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made.SerializeToString()


class Run:
    """One of the two, ready to be timed."""

    def __init__(self, found: Library, data: bytes) -> None:
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(str(found.path))
        self._runtime, self._session = runtime, runtime.InferenceSession(data, options)

    def bind(self, rows: int, K: int, N: int) -> None:
        """Random input of ``rows`` items."""
        x = np.random.default_rng(rows).standard_normal((1, rows, K)).astype(np.float32)
        arrays = {"x": x, "state": np.zeros((1, 1, K), np.float32)}
        results = {"y": np.zeros((1, rows, N), np.float32), "next": np.zeros((1, 1, K), np.float32)}
        self._binding, wrap = self._session.io_binding(), self._runtime.OrtValue.ortvalue_from_numpy
        for name, array in arrays.items():
            self._binding.bind_ortvalue_input(name, wrap(array))
        for name, array in results.items():
            self._binding.bind_ortvalue_output(name, wrap(array))
        self._kept = arrays | results

    def seconds(self) -> float:
        """The time of one run."""
        start = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        return time.perf_counter() - start


def medians(runs: list[Run]) -> list[float]:
    """Median seconds of each, taken in turns."""
    times: list[list[float]] = [[run.seconds()] for run in runs]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 6:
        for run, seen in zip(runs, times, strict=True):
            seen.append(run.seconds())
    return [statistics.median(seen[1:]) for seen in times]


def main() -> None:
    found = library()
    if isinstance(found, str):
        raise SystemExit(found)
    table = Table(title=f"products, one thread, {found.instructions}", title_justify="left")
    for heading in ("K x N", "weights", *(f"{rows} rows" for rows in ROWS)):
        table.add_column(heading, justify="right")
    for (K, N), kind in itertools.product(SIZES, ("float32", "int8", "int4")):
        loans: list[Loan] = []

        def lend(weights: np.ndarray, loans: list[Loan] = loans) -> int:
            loans.append(Loan(found, weights))
            return loans[-1].number

        fused = fusion.fuse(model(K, N, kind, fusable=True), found.instructions, lend)
        if fused is None:
            table.add_row(f"{K} x {N}", kind, *(["not fused"] * len(ROWS)))
            continue
        ours, theirs = Run(found, fused.model), Run(found, model(K, N, kind, fusable=False))
        cells = []
        for rows in ROWS:
            for run in (ours, theirs):
                run.bind(rows, K, N)
            mine, other = medians([ours, theirs])
            speed = 2 * rows * K * N / mine / 1e9
            cells.append(f"{mine * 1e6:,.1f} us  {speed:,.0f} Gop/s  {other / mine:.2f}x")
        table.add_row(f"{K} x {N}", kind, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
