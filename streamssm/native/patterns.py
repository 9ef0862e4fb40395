"""Recognises the operations of a graph that the native kernels can run as one program.

Each :class:`~streamssm.native.values.Step` stands for one node or a few that belong together (a
norm, a gate, a product with its bias and residual). Values are rows: ``[B, T, ...]`` with a
trailing shape that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from streamssm.native import pack, recurrences
from streamssm.native.graph import Graph, Node
from streamssm.native.norms import match_norm, other_input
from streamssm.native.program import Assembler, Code, Function, float_bits
from streamssm.native.values import Array, Shape, Step, Values

_NONE = -1

_UNARY = {
    "Sigmoid": Function.SIGMOID,
    "Softplus": Function.SOFTPLUS,
    "Exp": Function.EXP,
    "Tanh": Function.TANH,
    "Relu": Function.RELU,
}
_BINARY = {
    "Add": Function.ADD,
    "Sub": Function.SUBTRACT,
    "Mul": Function.MULTIPLY,
    "Div": Function.DIVIDE,
    "Max": Function.MAXIMUM,
    "Min": Function.MINIMUM,
}


class Reader(Values):
    """Turns nodes into steps."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._claimed: set[Node] = set()

    def step(self, node: Node) -> Step | None:
        """The step that begins with this node, or None if it is no operation on rows."""
        if node in self._claimed:
            return None
        # an output that is left out has no name that could be told from another's
        match = _MATCHERS.get(node.kind) if "" not in node.outputs else None
        step = None if match is None else match(self, node)
        if step is None:
            self.note_shape(node)
        else:
            self._claimed.update(step.nodes)
            self.axes.update(dict.fromkeys(step.outputs, self.axes[step.inputs[0]]))
        return step

    def only(self, name: str, op: str) -> Node | None:
        """As in :class:`Values`, and no part of a step yet."""
        node = super().only(name, op)
        return None if node in self._claimed else node


# Matchers. Each returns the step, or None if the node is not of the form that is run here.


def _linear(reader: Reader, node: Node) -> Step | None:
    matrix = reader.graph.constant(node.inputs[1])
    if matrix is None or matrix.ndim != 2 or not matrix.size or matrix.dtype != np.float32:
        return None
    K, N = matrix.shape
    if reader.rows(node.inputs[0], (K,)) is None:
        return None
    name = node.inputs[1]

    def place(program: Assembler) -> list[int]:
        floats = pack.matrix_floats(K, N)
        return [32, 0, program.weights(("matrix", name), floats, lambda: pack.matrix_parts(matrix)), 0]

    return _product(reader, node, K, N, place, 4 * K * N)


def _quantized(reader: Reader, node: Node) -> Step | None:
    sizes = [node.attributes.get(name, 0) for name in ("K", "N", "bits", "block_size", "accuracy_level")]
    K, N, bits, block, accuracy = (size if isinstance(size, int) else 0 for size in sizes)
    codes, scales = (reader.graph.constant(name) for name in node.inputs[1:3])
    plain = all(name == "" for name in node.inputs[3:])
    fits = plain and bits in (4, 8) and accuracy == 4 and block >= 16 and block % 16 == 0
    if codes is None or scales is None or not fits:
        return None
    blocks = -(-K // block)
    shapes_fit = codes.size == N * blocks * block * bits // 8 and scales.size == N * blocks
    if not shapes_fit or scales.dtype != np.float32 or reader.rows(node.inputs[0], (K,)) is None:
        return None
    name, grouped = node.inputs[1], codes.reshape(N, blocks, -1)

    def place(program: Assembler) -> list[int]:
        floats = pack.quantized_floats(N, blocks, block, bits)
        key = ("codes", name, N, blocks, bits)
        weights = program.weights(key, floats, lambda: pack.pack_quantized(grouped, bits))
        floats = pack.panels(N) * pack.PANEL * blocks
        factors = program.weights(("scales", node.inputs[2], N), floats, lambda: pack.pack_scales(scales, N))
        return [bits, block, weights, factors]

    step = _product(reader, node, K, N, place, K * N * bits // 8)
    step.quantised = True
    return step


def _product(
    reader: Reader, node: Node, K: int, N: int, place: Callable[[Assembler], list[int]], weight_bytes: int
) -> Step:
    """A product with what is added to it at once: a bias, a residual."""
    nodes, result, inputs = [node], node.outputs[0], [node.inputs[0]]
    bias: tuple[str, Array] | None = None
    add = reader.only(result, "Add")
    if add is not None:
        other = other_input(add, result)
        values = reader.floats(other, N)
        if values is not None:
            bias, result = (other, values), add.outputs[0]
            nodes.append(add)
            add = reader.only(result, "Add")
    other = "" if add is None else other_input(add, result)
    if add is not None and other != result and reader.rows(other, (N,), node.inputs[0]) is not None:
        inputs.append(other)
        nodes.append(add)
        result = add.outputs[0]
    reader.shapes[result] = (N,)

    def emit(program: Assembler) -> None:
        weights = place(program)
        offset = _NONE if bias is None else program.vector(bias[0], bias[1], N)
        source, *added = (program.read(name) for name in inputs)
        program.define(result, N)
        residual = added[0] if added else [_NONE, _NONE]
        program.emit(Code.LINEAR, *program.read(result), *source, K, N, *weights, offset, *residual)

    return Step(nodes, inputs, [result], emit, weight_bytes=weight_bytes)


def _rms_norm(reader: Reader, node: Node) -> Step | None:
    norm = match_norm(reader, node)
    if norm is None:
        return None
    width = prod(norm.shape)
    reader.shapes[norm.result] = norm.shape

    def emit(program: Assembler) -> None:
        place = program.vector(("norm", norm.name), norm.weight, width)
        source = program.read(norm.x)
        program.define(norm.result, width)
        target = program.read(norm.result)
        program.emit(Code.RMS_NORM, *target, *source, width, norm.shape[-1], float_bits(norm.eps), place)

    return Step(list(norm.nodes), [norm.x], [norm.result], emit)


def _split(reader: Reader, node: Node) -> Step | None:
    x, shape = node.inputs[0], reader.rows(node.inputs[0])
    if shape is None or len(shape) != 1 or node.attributes.get("axis", 0) not in (2, -1):
        return None
    count = len(node.outputs)
    given = reader.integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and given is None:
        return None
    sizes = [shape[0] // count] * count if given is None else given
    if sum(sizes) != shape[0] or len(sizes) != count or min(sizes) < 1:
        return None
    for name, size in zip(node.outputs, sizes, strict=True):
        reader.shapes[name] = (size,)

    def emit(program: Assembler) -> None:
        for index, name in enumerate(node.outputs):
            program.alias(name, x, sum(sizes[:index]))

    return Step([node], [x], list(node.outputs), emit)


def _regroup(reader: Reader, node: Node) -> Step | None:
    x, shape = node.inputs[0], reader.rows(node.inputs[0])
    target = None if shape is None else reader.keeps_items(node.inputs[1], x)
    return None if target is None else _renamed(reader, node, x, target)


def _identity(reader: Reader, node: Node) -> Step | None:
    shape = reader.rows(node.inputs[0])
    return None if shape is None else _renamed(reader, node, node.inputs[0], shape)


def _renamed(reader: Reader, node: Node, x: str, shape: Shape) -> Step:
    result = node.outputs[0]
    reader.shapes[result] = shape
    return Step([node], [x], [result], lambda program: program.alias(result, x))


def _sigmoid(reader: Reader, node: Node) -> Step | None:
    """Sigmoid, x sigmoid(x), or a x sigmoid(x)."""
    x, shape = node.inputs[0], reader.rows(node.inputs[0])
    if shape is None:
        return None
    silu = reader.only(node.outputs[0], "Mul")
    if silu is None or other_input(silu, node.outputs[0]) != x:
        return _unary(reader, node)
    result = silu.outputs[0]
    gate = reader.only(result, "Mul")
    other = "" if gate is None else other_input(gate, result)
    if gate is not None and other != result and reader.rows(other, shape, x) is not None:
        inputs, nodes = [other, x], [node, silu, gate]
        return _rowwise(reader, nodes, inputs, shape, Code.BINARY, Function.GATE)
    return _rowwise(reader, [node, silu], [x], shape, Code.UNARY, Function.SILU)


def _unary(reader: Reader, node: Node) -> Step | None:
    shape = reader.rows(node.inputs[0])
    if shape is None:
        return None
    return _rowwise(reader, [node], [node.inputs[0]], shape, Code.UNARY, _UNARY[node.kind])


def _binary(reader: Reader, node: Node) -> Step | None:
    if len(node.inputs) != 2:
        return None
    a, b = node.inputs
    function = _BINARY[node.kind]
    if reader.graph.constant(a) is not None and function not in (Function.SUBTRACT, Function.DIVIDE):
        a, b = b, a
    shape = reader.rows(a)
    if shape is None:
        return None
    if reader.graph.constant(b) is not None:
        return _with_constant(reader, node, a, b, shape, function)
    if reader.rows(b, shape, a) is None:
        return None
    return _rowwise(reader, [node], [a, b], shape, Code.BINARY, function)


def _with_constant(
    reader: Reader, node: Node, x: str, name: str, shape: Shape, function: Function
) -> Step | None:
    values, width, result = reader.graph.constant(name), prod(shape), node.outputs[0]
    if values is None or values.dtype != np.float32 or values.shape not in ((), (1,), shape):
        return None
    row = values if values.shape == shape else np.full(shape, values.reshape(-1)[0], np.float32)
    reader.shapes[result] = shape

    def emit(program: Assembler) -> None:
        place, source = program.vector(("row", name), row, width), program.read(x)
        program.define(result, width)
        program.emit(Code.CONSTANT, *program.read(result), *source, width, function, place)

    return Step([node], [x], [result], emit)


def _rowwise(
    reader: Reader, nodes: list[Node], inputs: list[str], shape: Shape, code: Code, function: Function
) -> Step:
    result, width = nodes[-1].outputs[0], prod(shape)
    reader.shapes[result] = shape

    def emit(program: Assembler) -> None:
        sources = [argument for name in inputs for argument in program.read(name)]
        program.define(result, width)
        program.emit(code, *program.read(result), *sources, width, function)

    return Step(nodes, inputs, [result], emit)


_MATCHERS: dict[str, Callable[[Reader, Node], Step | None]] = {
    "MatMul": _linear,
    "com.microsoft.MatMulNBits": _quantized,
    "Pow": _rms_norm,
    "streamssm.CausalConv1d": recurrences.conv,
    "streamssm.SelectiveScan": recurrences.scan,
    "streamssm.StateSpaceDual": recurrences.dual,
    "Split": _split,
    "Reshape": _regroup,
    "Identity": _identity,
    "Concat": recurrences.unfold,
    "Sigmoid": _sigmoid,
    **dict.fromkeys(("Softplus", "Exp", "Tanh", "Relu"), _unary),
    **dict.fromkeys(_BINARY, _binary),
}
