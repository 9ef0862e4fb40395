"""Standard operators that TensorRT runs badly or not at all, in ones that it runs well.

``Softplus``: see :func:`~streamssm.tensorrt.lowering_ops.softplus`. ``GRU`` and ``LSTM`` of a known number
of items are written out: as loops they are run item by item anyway. A mixture of experts splits its rows
by numbers that are known only at run time, which an engine cannot: every expert is given all rows, and those
that are not its own are zeroed. ``MatMulNBits`` becomes a product with the numbers that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from streamssm.errors import ExportError
from streamssm.tensorrt.lowering_graph import Array, Builder, Facts, attributes_of
from streamssm.tensorrt.lowering_ops import part, softplus

Lower = Callable[[Builder, onnx.NodeProto, Facts], None]

#: items of a call beyond which a recurrence without a parallel form is not written out
MOST_UNROLLED = 256


def lower_softplus(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """Exact for small steps too."""
    softplus(b, node.input[0], out=node.output[0])


def gru(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """x [T, B, I]; W [1, 3 H, I], R [1, 3 H, H], B [1, 6 H] in the order z, r, h -> y [T, 1, B, H] and the
    last [1, B, H], with the reset gate after the product, as torch has it."""
    given = attributes_of(node)
    H = int(given["hidden_size"])
    if not given.get("linear_before_reset"):
        raise ExportError("the model holds a GRU whose reset gate acts before the product; export it again")
    x, W, R, bias, _, start = node.input[:6]
    (T,) = _length(facts, x, "GRU")
    inner = _transposed(b, facts, R)
    w_bias, r_bias = _biases(b, bias, 3 * H)
    into = b("Add", b("MatMul", x, _transposed(b, facts, W)), w_bias)  # [T, B, 3 H]
    h = b("Squeeze", start, [0])
    outputs = []
    for t in range(T):
        given_z, given_r, given_n = _gates(b, b("Squeeze", part(b, into, 0, t, t + 1), [0]), 3, H)
        own_z, own_r, own_n = _gates(b, b("Add", b("MatMul", h, inner), r_bias), 3, H)
        z = b("Sigmoid", b("Add", given_z, own_z))
        r = b("Sigmoid", b("Add", given_r, own_r))
        n = b("Tanh", b("Add", given_n, b("Mul", r, own_n)))
        h = b("Add", n, b("Mul", z, b("Sub", h, n)))
        outputs.append(h)
    _finish(b, node, outputs, [h])


def lstm(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """As :func:`gru`, with four gates in the order i, o, f, c, and the cell as a second state."""
    H = int(attributes_of(node)["hidden_size"])
    x, W, R, bias, _, start, cell = node.input[:7]
    (T,) = _length(facts, x, "LSTM")
    inner = _transposed(b, facts, R)
    w_bias, r_bias = _biases(b, bias, 4 * H)
    into = b("Add", b("Add", b("MatMul", x, _transposed(b, facts, W)), w_bias), r_bias)
    h, c = b("Squeeze", start, [0]), b("Squeeze", cell, [0])
    outputs = []
    for t in range(T):
        gates = b("Add", b("Squeeze", part(b, into, 0, t, t + 1), [0]), b("MatMul", h, inner))
        i, o, f, g = _gates(b, gates, 4, H)
        kept = b("Mul", b("Sigmoid", f), c)
        c = b("Add", kept, b("Mul", b("Sigmoid", i), b("Tanh", g)))
        h = b("Mul", b("Sigmoid", o), b("Tanh", c))
        outputs.append(h)
    _finish(b, node, outputs, [h, c])


def _length(facts: Facts, x: str, what: str) -> tuple[int, ...]:
    found = facts.sizes(x, 0)
    if found[0] > MOST_UNROLLED:
        raise ExportError(
            f"a {what} runs over {found[0]} items of a call, {MOST_UNROLLED} at most are written out; "
            "give a smaller --block"
        )
    return found


def _transposed(b: Builder, facts: Facts, weight: str) -> str:
    """[1, rows, columns] -> [columns, rows]."""
    value = facts.value(weight)
    if value is not None:
        return b.constant(value[0].T)
    return b("Transpose", b("Squeeze", weight, [0]), perm=[1, 0])


def _biases(b: Builder, bias: str, size: int) -> tuple[str, str]:
    flat = b("Squeeze", bias, [0])
    return part(b, flat, 0, 0, size), part(b, flat, 0, size, 2 * size)


def _gates(b: Builder, x: str, count: int, size: int) -> list[str]:
    return [part(b, x, 1, n * size, (n + 1) * size) for n in range(count)]


def _finish(b: Builder, node: onnx.NodeProto, outputs: Sequence[str], last: Sequence[str]) -> None:
    """Outputs [B, H] as y [T, 1, B, H], and the last states [1, B, H]."""
    made = [*node.output, "", "", ""]
    rows = [b("Unsqueeze", y, [0, 1]) for y in outputs]
    if made[0]:
        b("Concat", *rows, axis=0, out=made[0])
    for name, value in zip(made[1:], last, strict=False):
        if name:
            b("Unsqueeze", value, [0], out=name)


def expert_nodes(graph: onnx.GraphProto, facts: Facts) -> dict[str, Lower]:
    """The nodes that split rows among experts by computed numbers, and those that join the products with
    them again, each by its first output."""
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[str, Lower] = {}
    for node in graph.node:
        products = [makers.get(name) for name in node.input] if node.op_type == "Concat" else []
        rows = [p.input[0] for p in products if p is not None and p.op_type == "MatMul"]
        split = makers.get(rows[0]) if rows and len(rows) == len(products) else None
        if split is not None and list(split.output) == rows and _by_numbers(split, facts):
            found |= {split.output[0]: expert_split, node.output[0]: expert_join}
    return found


def _by_numbers(node: onnx.NodeProto, facts: Facts) -> bool:
    """Whether a node splits rows, axis 0, by numbers that are no constants."""
    rows = node.op_type == "Split" and len(node.input) == 2 and not attributes_of(node).get("axis", 0)
    return rows and facts.value(node.input[1]) is None


def expert_split(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """Rows [M, d] in the order of their experts, and the number of each expert's: [E]. What each expert
    gets is all rows, with those of others zeroed; :func:`expert_join` adds up what comes out."""
    x, counts = node.input
    numbers = b("Cast", counts, to=onnx.TensorProto.FLOAT)
    E = len(node.output)
    upto = b("Mul", b("Unsqueeze", numbers, [1]), np.triu(np.ones((E, E), np.float32)))
    ends = b("ReduceSum", upto, [0], keepdims=0)  # [E], exact up to 2^24 rows
    starts = b("Sub", ends, numbers)
    length = b("Squeeze", b("Shape", x, start=0, end=1))
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    row = b("Cast", b("Range", zero, length, one), to=onnx.TensorProto.FLOAT)
    for e, out in enumerate(node.output):
        first, end = (part(b, bound, 0, e, e + 1) for bound in (starts, ends))
        mine = b("And", b("GreaterOrEqual", row, first), b("Less", row, end))
        b("Where", b("Unsqueeze", mine, [1]), x, 0.0, out=out)


def expert_join(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """Products of zeroed rows, which have no bias, are zero: the sum is what joining the rows was."""
    total = node.input[0]
    for n, other in enumerate(node.input[1:], 2):
        total = b("Add", total, other, out=node.output[0] if n == len(node.input) else None)
    if len(node.input) == 1:
        b("Identity", total, out=node.output[0])


def quantised_product(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """A product with the float32 matrix that 8-bit or 4-bit numbers and their scales stand for."""
    if len(node.input) != 3:
        raise ExportError(f"{node.op_type} has {len(node.input)} inputs; quantise the model again")
    given = attributes_of(node)
    numbers, scales = (facts.constant(name, "the quantised weight") for name in node.input[1:])
    b("MatMul", node.input[0], _restored(numbers, scales, given), out=node.output[0])


def _restored(numbers: Array, scales: Array, given: Mapping[str, int]) -> Array:
    """uint8 [N, blocks, block * bits / 8] and scales [N, blocks] -> float32 [K, N]; of two 4-bit numbers
    the first is the low half, and the zero is in the middle of the range."""
    bits, K, N = given["bits"], given["K"], given["N"]
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], axis=-1)
    flat = numbers.reshape(N, -1, given["block_size"]).astype(np.float32) - (1 << (bits - 1))
    columns = (flat * scales.reshape(N, -1, 1)).reshape(N, -1)
    return np.ascontiguousarray(columns[:, :K].T)
