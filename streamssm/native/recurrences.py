"""Matchers of the operations that carry a state from item to item; see :mod:`streamssm.native.patterns`.

Each returns the step, or None if the node is not of the form that is run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamssm.native.graph import Node
from streamssm.native.program import Assembler, Code
from streamssm.native.values import Step

if TYPE_CHECKING:
    from streamssm.native.patterns import Reader

_ENDLESS = 2**62


def conv(reader: Reader, node: Node) -> Step | None:
    """A convolution by channel over time; its state is the last K - 1 items."""
    x, weight_name, bias_name, state = node.inputs
    weight = reader.graph.constant(weight_name)
    if weight is None or weight.dtype != np.float32 or weight.ndim != 2:
        return None
    K, D = weight.shape
    bias = reader.floats(bias_name, D)
    if bias is None or K < 2 or reader.rows(x, (D,)) is None or not reader.is_input(state):
        return None
    y, following = node.outputs
    silu = int(bool(node.attributes.get("silu", 0)))
    reader.shapes[y] = (D,)

    def emit(program: Assembler) -> None:
        taps = program.weights(("as is", weight_name), K * D, lambda: weight)
        places = taps, program.vector(bias_name, bias, D)
        slot, source = program.port("states", (K - 1) * D), program.read(x)
        program.define(y, D)
        program.emit(Code.CONV, *program.read(y), *source, K, D, silu, *places, slot)

    return Step([node], [x], [y], emit, [(state, following)], recurrent=True)


def scan(reader: Reader, node: Node) -> Step | None:
    """The selective scan of Mamba."""
    x, dt, A_name, B, C, D_name, bias_name, z, state = node.inputs
    A = reader.graph.constant(A_name)
    if A is None or A.ndim != 2 or not A.size or A.dtype != np.float32 or not reader.is_input(state):
        return None
    N, D = A.shape
    skip, bias = reader.floats(D_name, D), reader.floats(bias_name, D)
    wanted = [(x, (D,)), (dt, (D,)), (B, (N,)), (C, (N,)), (z, (D,))]
    if skip is None or bias is None or any(reader.rows(name, shape, x) is None for name, shape in wanted):
        return None
    y, following = node.outputs
    reader.shapes[y] = (D,)

    def emit(program: Assembler) -> None:
        places = [
            program.weights(("as is", A_name), N * D, lambda: A),
            program.vector(D_name, skip, D),
            program.vector(bias_name, bias, D),
        ]
        slot = program.port("states", N * D)
        sources = [argument for name, _ in wanted for argument in program.read(name)]
        program.define(y, D)
        program.emit(Code.SCAN, *program.read(y), *sources, D, N, *places, slot)

    return Step([node], [name for name, _ in wanted], [y], emit, [(state, following)], recurrent=True)


def dual(reader: Reader, node: Node) -> Step | None:
    """The scan of Mamba-2, whose decay is one number for each head."""
    x, dt, A_name, B, C, D_name, state = node.inputs
    heads, groups = reader.rows(x), reader.rows(B, beside=x)
    if heads is None or groups is None or len(heads) != 2 or len(groups) != 2 or not reader.is_input(state):
        return None
    (H, P), (G, N) = heads, groups
    A, skip = reader.floats(A_name, H), reader.floats(D_name, H, P)
    if A is None or skip is None or reader.rows(dt, (H,), x) is None or reader.rows(C, groups, x) is None:
        return None
    y, following = node.outputs
    reader.shapes[y] = heads

    def emit(program: Assembler) -> None:
        places = program.vector(A_name, A, H), program.vector(D_name, skip, H * P)
        slot = program.port("states", H * N * P)
        sources = [argument for name in (x, dt, B, C) for argument in program.read(name)]
        program.define(y, H * P)
        program.emit(Code.DUAL, *program.read(y), *sources, H, P, G, N, *places, slot)

    return Step([node], [x, dt, B, C], [y], emit, [(state, following)], recurrent=True)


def unfold(reader: Reader, node: Node) -> Step | None:
    """The last K items side by side: Concat[state, x] in time, K slices of it, Concat of these."""
    if node.attributes.get("axis") != 1 or len(node.inputs) != 2:
        return None
    state, x = node.inputs
    port = next((port for port in reader.graph.inputs if port.name == state), None)
    if port is None or len(port.dims) != 3 or not all(isinstance(size, int) for size in port.dims[1:]):
        return None
    if not reader.is_input(state):
        return None
    past, D = (int(size) for size in port.dims[1:] if isinstance(size, int))
    slices = reader.graph.consumers.get(node.outputs[0], [])
    found = {_time_slice(reader, part): part for part in slices}
    taps = [found.get((k, k - past if k < past else 0)) for k in range(past + 1)]
    following = found.get((-past, 0))
    used = [tap for tap in taps if tap is not None]
    if following is None or len(used) != past + 1 or len(slices) != past + 2:
        return None
    readers = {reader.only(tap.outputs[0], "Concat") for tap in used}
    joined = readers.pop()
    if joined is None or readers or joined.attributes.get("axis") not in (2, -1):
        return None
    if joined.inputs != tuple(tap.outputs[0] for tap in used) or reader.rows(x, (D,)) is None:
        return None
    if following.outputs[0] in reader.graph.consumers or node.outputs[0] in reader.graph.results:
        return None
    K, result = past + 1, joined.outputs[0]
    reader.shapes[result] = (K * D,)

    def emit(program: Assembler) -> None:
        slot, source = program.port("states", past * D), program.read(x)
        program.define(result, K * D)
        program.emit(Code.UNFOLD, *program.read(result), *source, K, D, slot)

    nodes = [node, *used, following, joined]
    return Step(nodes, [x], [result], emit, [(state, following.outputs[0])])


def _time_slice(reader: Reader, node: Node) -> tuple[int, int] | None:
    """First and last (0: the end) of a slice along time with step 1."""
    if node.kind != "Slice" or len(node.inputs) < 4:
        return None
    lists: Sequence[list[int] | None] = [reader.integers(name) for name in node.inputs[1:]]
    if any(values is None or len(values) != 1 for values in lists):
        return None
    first, last, axis, *step = (values[0] for values in lists if values)
    if axis != 1 or step not in ([], [1]) or last == 0:
        return None
    return first, 0 if last > _ENDLESS else last
