"""``streamssm plan`` against steps that were measured.

    python benchmarks/plan.py            # a table: predicted, measured, their ratio; exit code 4 beyond 30 %
    python benchmarks/plan.py --fit      # fits the rates anew, shows what they give, and writes them into
                                         # streamssm/tensorrt/estimate.py; after every new measurement

Measured are the rows of results/peers.json (one core) and results/gpu.json (an H100). The core's bandwidth
and arithmetic are those that peers.json measured beside each model; of the GPU everything is published but
the rates. Of rounds on a core the fastest counts, by the median of its steps: from run to run it is the
same within a few per cent, where the others differ by half, for the machine has other work. Rates are few and
shared by all rows; as a check on themselves they are also fitted to the Mamba rows alone, and then asked
for Mamba-2.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from sidebyside.shapes import SHAPES, Shape
from sidebyside.workers.machine import GEMM_FLOPS, READ_BYTES
from streamssm.manifest import DIGEST_PLACEHOLDER, FORMAT, Input, Manifest, Output, StateTensor
from streamssm.native.graph import Graph
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt.costs import Costs, costs_of, count
from streamssm.tensorrt.estimate import Call, Core, CoreRates, Gpu, GpuRates
from streamssm.tensorrt.targets import DEVICES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ESTIMATE = ROOT / "streamssm" / "tensorrt" / "estimate.py"
VAD = ROOT / "streamssm" / "models" / "vad.onnx"
LIMIT = 1.3
BITS = {"fp32": 32, "int8": 8, "int4": 4}
BLOCK = 128
CASES = {"decode": 1, "push16": 16, "prefill": 512}


@dataclass(frozen=True)
class Row:
    """A step that was measured. ``machine`` makes the machine from the rates under test."""

    name: str
    seconds: float
    costs: Costs
    call: Call
    machine: Callable[[Any], Any]

    def predicted(self, rates: Any) -> float:
        """Seconds."""
        return self.machine(rates).step(self.costs, self.call).seconds

    def ratio(self, rates: Any) -> float:
        """Predicted over measured."""
        return self.predicted(rates) / self.seconds


# Models as the exporter writes them, without their weights.


def costs_of_shape(shape: Shape, bits: int = 32) -> Costs:
    """The costs of a model of the side-by-side benchmark; its weights are never made."""
    graph, states = _shell(shape, bits)
    manifest = Manifest(
        format=FORMAT,
        name=shape.name,
        sha256=DIGEST_PLACEHOLDER,
        producer="benchmarks/plan.py",
        input=Input("tokens", "tokens", "int64", vocabulary=shape.vocabulary),
        outputs=(Output("logits", "logits", (shape.vocabulary,)),),
        states=tuple(StateTensor(name, f"next.{name}", dims) for name, dims in states.items()),
        block=1,
    )
    return count(Graph(graph.SerializeToString()), manifest)


class _Writer:
    """Nodes, and tensors that have a shape and no content."""

    def __init__(self, bits: int) -> None:
        self.bits, self.nodes, self.tensors = bits, [], []
        self.states: dict[str, tuple[int, ...]] = {}

    def tensor(self, *dims: int) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT))
        return name

    def integers(self, *values: int) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def state(self, name: str, *dims: int) -> str:
        self.states[name] = dims
        return name

    def node(
        self, op: str, inputs: Sequence[str], count: int = 1, domain: str = "", **attributes: Any
    ) -> Any:
        outputs = [f"v{len(self.nodes)}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0] if count == 1 else outputs

    def product(self, x: str, inner: int, outer: int) -> str:
        if self.bits == 32:
            return self.node("MatMul", [x, self.tensor(inner, outer)])
        blocks = -(-inner // BLOCK)
        names = [self.tensor(outer, blocks, BLOCK * self.bits // 8), self.tensor(outer, blocks)]
        said = {"K": inner, "N": outer, "bits": self.bits, "block_size": BLOCK}
        return self.node("MatMulNBits", [x, *names], domain="com.microsoft", **said)

    def norm(self, x: str, width: int) -> str:
        square = self.node("Pow", [x, self.tensor()])
        root = self.node("Sqrt", [self.node("Add", [self.node("ReduceMean", [square]), self.tensor()])])
        return self.node("Mul", [self.node("Div", [x, root]), self.tensor(width)])

    def mamba(self, shape: Shape, layer: int, x: str) -> str:
        D, N, R = shape.d_inner, shape.d_state, shape.dt_rank
        conv, ssm = self.state(f"{layer}.conv", shape.d_conv - 1, D), self.state(f"{layer}.ssm", N, D)
        u, z = self.node("Split", [self.product(x, shape.d_model, 2 * D)], 2)
        weights = [self.tensor(shape.d_conv, D), self.tensor(D)]
        u, _ = self.node("CausalConv1d", [u, *weights, conv], 2, "streamssm")
        small = self.node("Split", [self.product(u, D, R + 2 * N), self.integers(R, N, N)], 3)
        dt = self.product(small[0], R, D)
        weights = [self.tensor(D), self.tensor(D)]
        read = [u, dt, self.tensor(N, D), *small[1:], *weights, z, ssm]
        y, _ = self.node("SelectiveScan", read, 2, "streamssm")
        return self.product(y, D, shape.d_model)

    def mamba2(self, shape: Shape, layer: int, x: str) -> str:
        D, H, W = shape.d_inner, shape.heads, shape.groups * shape.d_state
        conv = self.state(f"{layer}.conv", shape.d_conv - 1, shape.conv_width)
        ssm = self.state(f"{layer}.ssm", H, shape.d_state, shape.headdim)
        wide = self.product(x, shape.d_model, D + shape.conv_width + H)
        z, u, dt = self.node("Split", [wide, self.integers(D, shape.conv_width, H)], 3)
        weights = [self.tensor(shape.d_conv, shape.conv_width), self.tensor(shape.conv_width)]
        u, _ = self.node("CausalConv1d", [u, *weights, conv], 2, "streamssm")
        u, B, C = self.node("Split", [u, self.integers(D, W, W)], 3)
        dt = self.node("Softplus", [self.node("Add", [dt, self.tensor(H)])])
        read = [u, dt, self.tensor(H), B, C, self.tensor(H, shape.headdim), ssm]
        y, _ = self.node("StateSpaceDual", read, 2, "streamssm")
        gate = self.node("Mul", [z, self.node("Sigmoid", [z])])
        return self.product(self.norm(self.node("Mul", [y, gate]), D), D, shape.d_model)


def _shell(shape: Shape, bits: int) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    writer = _Writer(bits)
    # the embedding is float32, and one tensor with the head where that is float32 too
    x = writer.node("Gather", [writer.tensor(shape.vocabulary, shape.d_model), "tokens"])
    mixer = writer.mamba2 if shape.kind == "mamba2" else writer.mamba
    for layer in range(shape.layers):
        x = writer.node("Add", [x, mixer(shape, layer, writer.norm(x, shape.d_model))])
    head = writer.product(writer.norm(x, shape.d_model), shape.d_model, shape.vocabulary)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (head, "tokens")]
    graph = helper.make_graph(writer.nodes, "shell", ports[1:], ports[:1], writer.tensors)
    return helper.make_model(graph), writer.states


# What was measured.


def core_rows(results: dict[str, Any]) -> Iterator[Row]:
    """Rows of peers.json. The machine is that of the same group, or of all if it was not measured there."""
    groups = results["groups"]
    known = [found for found in map(_core, groups.values()) if found is not None]
    usual = tuple(statistics.median(column) for column in zip(*known, strict=True))
    for name, group in groups.items():
        ours = group["rows"].get("ours", {}).get("cases", {})
        bandwidth, arithmetic = _core(group) or usual
        costs = costs_of_shape(SHAPES[group["model"]], BITS[group["precision"]])
        for case, items in CASES.items():
            if case in ours:
                made, seconds = _core_machine(bandwidth, arithmetic), min(ours[case]["rounds_ns"]) / 1e9
                yield Row(f"{name} {case}", seconds, costs, Call(items=items), made)
    if "vad" in results and "ours" in results["vad"]:
        seconds = results["vad"]["ours"]["us_per_step"] / 1e6
        yield Row(
            "vad 10 ms", seconds, costs_of(read_model_file(VAD)), Call(items=160), _core_machine(*usual)
        )


def _core_machine(bandwidth: float, arithmetic: float) -> Callable[[CoreRates], Core]:
    return lambda rates: Core(bandwidth, arithmetic, rates=rates)


def _core(group: dict[str, Any]) -> tuple[float, float] | None:
    """Bytes and operations a second of the core, as measured between the rounds of a group."""
    cases = group["machine"]["cases"]
    read, gemm = cases.get("decode", {}).get("read"), cases.get("prefill", {})
    if not read or "gemm-ort" not in gemm:
        return None
    fastest = min(min(gemm[name]) for name in ("gemm-ort", "gemm-numpy"))
    return READ_BYTES / min(read) * 1e9, GEMM_FLOPS / fastest * 1e9


GPU_ROWS = {
    "mamba step B=1": Call(1, 1),
    "mamba step B=64": Call(64, 1),
    "mamba step B=256": Call(256, 1),
    "mamba push of 64": Call(1, 64),
    "mamba prefill 4096": Call(1, 4096),
}


def gpu_rows(results: dict[str, Any]) -> Iterator[Row]:
    """Rows of gpu.json: whole stacks without the host, logits of the last item only."""
    measured = {name: row["us"] / 1e6 for name, row in results["rows"].items() if "us" in row}
    for kind, name in (("mamba", "mamba-130m"), ("mamba2", "mamba2-130m")):
        costs = costs_of_shape(SHAPES[name])
        for row, call in GPU_ROWS.items():
            title = row.replace("mamba", kind, 1)
            if title in measured:
                call = replace(call, precision="fp16", last=True, host=False)
                yield Row(title, measured[title], costs, call, _h100)
    if "vad pool 4096" in measured:
        call = Call(4096, 160, fused=False)
        yield Row("vad pool 4096", measured["vad pool 4096"], costs_of(read_model_file(VAD)), call, _h100)


def _h100(rates: GpuRates) -> Gpu:
    return Gpu(DEVICES["h100"], rates, whole=True)


# Fitting.


def fit(rows: Sequence[Row], start: Any) -> Any:
    """Rates that make the sum of squared logarithms of the ratios small, one after another."""
    best, cost = start, _cost(rows, start)
    for factor in (1.5, 1.2, 1.05, 1.01):
        improved = True
        while improved:
            improved = False
            for changed in _neighbours(best, factor):
                found = _cost(rows, changed)
                if found < cost - 1e-9:
                    best, cost, improved = changed, found, True
    return best


def _neighbours(rates: Any, factor: float) -> Iterator[Any]:
    for item in fields(rates):
        value = getattr(rates, item.name)
        for scale in (factor, 1 / factor):
            if isinstance(value, dict):
                for key in value:
                    yield replace(rates, **{item.name: value | {key: value[key] * scale}})
            else:
                yield replace(rates, **{item.name: _limited(item.name, value * scale)})


#: a fraction of what is published is at most all of it; products were seen to reach this (docs/cuda-notes.md:
#: those of a layer of Mamba-2 on 4,096 items in 52 us)
_MOST = {"weights": 1.0, "values": 1.0, "single": 1.0, "product": 0.65}


def _limited(name: str, value: float) -> float:
    return min(value, _MOST.get(name, math.inf))


def _cost(rows: Sequence[Row], rates: Any) -> float:
    # a larger power: the worst rows count most
    if isinstance(rates, CoreRates) and rates.values < 0.05:
        return math.inf
    return sum(abs(math.log(row.ratio(rates))) ** 3 for row in rows)


def write(rates: Any) -> None:
    """Put the rates, to three digits, where the package has them."""
    name = "CORE_RATES" if isinstance(rates, CoreRates) else "H100_RATES"
    lines = []
    for item in fields(rates):
        value = getattr(rates, item.name)
        text = (
            "{" + ", ".join(f"{key}: {each:.3g}" for key, each in value.items()) + "}"
            if isinstance(value, dict)
            else f"{value:.3g}"
        )
        lines.append(f"    {item.name}={text},")
    made = "\n".join([f"{name} = {type(rates).__name__}(", *lines, ")\n"])
    found = re.sub(
        rf"^{name} = .*?^\)\n", made, ESTIMATE.read_text(), count=1, flags=re.DOTALL | re.MULTILINE
    )
    ESTIMATE.write_text(found)


def show(title: str, rows: Sequence[Row], rates: Any) -> float:
    """Print a table; the worst ratio, above one."""
    print(f"\n{title}\n{'':28} predicted   measured  ratio  bound by")
    worst = 1.0
    for row in rows:
        found, ratio = row.machine(rates).step(row.costs, row.call), row.ratio(rates)
        worst = max(worst, ratio, 1 / ratio)
        flag = "" if 1 / LIMIT <= ratio <= LIMIT else "  MISS"
        times = f"{row.predicted(rates) * 1e6:10.1f} {row.seconds * 1e6:10.1f}"
        print(f"{row.name:28}{times}  {ratio:5.2f}  {found.bound}{flag}")
    return worst


def main() -> int:
    """The table, or the fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--only", default="", help="core or h100")
    arguments = parser.parse_args()
    from streamssm.tensorrt.estimate import CORE_RATES, H100_RATES

    worst = 1.0
    parts = (("one core", core_rows, "peers.json", CORE_RATES), ("H100", gpu_rows, "gpu.json", H100_RATES))
    for title, read, name, rates in parts:
        if arguments.only not in title.lower():
            continue
        rows = list(read(json.loads((RESULTS / name).read_text())))
        if arguments.fit:
            rates = fit(rows, rates)
            write(rates)
        worst = max(worst, show(f"{title} (microseconds)", rows, rates))
        if arguments.fit:
            half = [row for row in rows if "mamba2" not in row.name]
            other = [row for row in rows if row not in half]
            show(f"{title}: Mamba-2 with rates fitted without it", other, fit(half, rates))
    print(f"\nworst: {worst:.2f} times, at most {LIMIT}")
    return 0 if worst <= LIMIT else 4


if __name__ == "__main__":
    sys.exit(main())
