"""Recognises whole Mamba and Mamba-2 blocks in a graph, norm .. residual, as the exporter writes them.

Shape letters as in docs: D channels, N state size, R rank of the time step, K taps, H heads of P channels, G
groups. A graph of any other form has no blocks, which is no error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from streamssm.native.graph import Graph, Node
from streamssm.native.norms import Norm, match_norm, other_input
from streamssm.native.patterns import Reader
from streamssm.native.values import Array, Values

T = TypeVar("T")

MAMBA, MAMBA2 = 1, 2
_CONV = "streamssm.CausalConv1d"


class Part(NamedTuple):
    """A parameter: a matrix ``[in, out]`` as the graph multiplies with it, or floats as they are."""

    array: Array
    matrix: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """One block from ``x`` to ``y``, its residual added.

    ``form`` is what equal blocks share: kind, sizes (d_model, D, N, R, K, H, P, G), eps and the limits of the
    time step. ``parts`` are in the order of kernels/cuda/stack_api.h; ``states`` pairs of what is read and
    what is left.
    """

    form: tuple[int, tuple[int, ...], float, float, float]
    x: str
    y: str
    nodes: frozenset[Node]
    parts: tuple[Part, ...]
    states: tuple[tuple[str, str], ...]


class OtherFormError(Exception):
    """The nodes around an operator are no block of this form."""


def _need(value: T | None) -> T:
    if value is None:
        raise OtherFormError
    return value


def _require(*conditions: object) -> None:
    if not all(conditions):
        raise OtherFormError


def _whole(node: Node, inputs: int) -> None:
    """Require that an operator of ours has all its inputs and both its outputs."""
    _require(len(node.inputs) == inputs, all(node.inputs), len(node.outputs) == 2, all(node.outputs))


class Known(Values):
    """A graph's values with all that the reader of operations finds out about them."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        reader = Reader(graph)
        for node in graph.nodes:
            reader.step(node)
        self.shapes, self.axes = reader.shapes, reader.axes
        found = (match_norm(self, node) for node in graph.nodes if node.kind == "Pow")
        norms = [norm for norm in found if norm is not None and len(norm.shape) == 1]
        self.norms_of = {norm.x: norm for norm in norms}
        self.norms_to = {norm.result: norm for norm in norms}

    def made(self, name: str, kind: str) -> Node:
        """The node of this kind that makes a value."""
        node = self.graph.producers.get(name)
        _require(node is not None, node is not None and node.kind == kind)
        return _need(node)

    def taken(self, name: str, kind: str) -> Node:
        """The one node that reads a value, of this kind."""
        return _need(self.only(name, kind))

    def matrix(self, name: str) -> Array:
        """A float32 matrix of the graph."""
        value = _need(self.graph.constant(name))
        _require(value.ndim == 2, value.size, value.dtype == np.float32)
        return value

    def row(self, name: str, *shape: int) -> Part:
        """A float32 parameter of this shape."""
        return Part(_need(self.floats(name, *shape)))

    def closed(self, nodes: Iterable[Node], ends: Iterable[str]) -> bool:
        """Whether nothing of what these nodes make is used outside them, but for the ends."""
        inner, open_ends = set(nodes), set(ends)
        return all(
            name in open_ends
            or (name not in self.graph.results and inner.issuperset(self.graph.consumers.get(name, ())))
            for node in inner
            for name in node.makes
        )


class _Mixer(NamedTuple):
    """What the two kinds find between the first product and the last."""

    kind: int
    sizes: tuple[int, ...]  # D, N, R, K, H, P, G
    into: Node  # the first product
    end: str  # what the last product takes
    parts: tuple[Part, ...]  # from the convolution on, without the last product
    states: tuple[tuple[str, str], tuple[str, str]]
    nodes: tuple[Node, ...]
    eps: float | None = None  # of a norm within
    limits: tuple[float, float] = (0.0, math.inf)


def find_blocks(known: Known) -> list[Block]:
    """Every block, in the order of the graph."""
    kinds = {"streamssm.SelectiveScan": _mamba, "streamssm.StateSpaceDual": _mamba2}
    found = []
    for node in known.graph.nodes:
        if node.kind in kinds:
            try:
                found.append(_block(known, kinds[node.kind](known, node)))
            except OtherFormError:
                continue
    return found


def _block(known: Known, mixer: _Mixer) -> Block:
    out = known.taken(mixer.end, "MatMul")
    add = known.taken(out.outputs[0], "Add")
    norm = _need(known.norms_to.get(mixer.into.inputs[0]))
    first, last = known.matrix(mixer.into.inputs[1]), known.matrix(out.inputs[1])
    (d,), D = norm.shape, mixer.sizes[0]
    _require(
        out.inputs[0] == mixer.end,
        other_input(add, out.outputs[0]) == norm.x,
        first.shape[0] == d,
        last.shape == (D, d),
        mixer.eps in (None, norm.eps),
    )
    nodes = (*norm.nodes, mixer.into, *mixer.nodes, out, add)
    ends = [after for _, after in mixer.states]
    _require(known.closed(nodes, [add.outputs[0], *ends]), not any(map(known.graph.consumers.get, ends)))
    _require(all(known.is_input(before) for before, _ in mixer.states))
    form = (mixer.kind, (d, *mixer.sizes), norm.eps, *mixer.limits)
    parts = (Part(norm.weight), Part(first, True), *mixer.parts, Part(last, True))
    return Block(form, norm.x, add.outputs[0], frozenset(nodes), parts, mixer.states)


def _convolution(known: Known, conv: Node) -> tuple[int, tuple[Part, Part]]:
    """Its taps and parameters."""
    weight = known.matrix(conv.inputs[1])
    K, channels = weight.shape
    _whole(conv, 4)
    _require(K > 1, conv.attributes.get("silu"), known.rows(conv.inputs[0]) == (channels,))
    return K, (Part(weight), known.row(conv.inputs[2], channels))


def _mamba(known: Known, scan: Node) -> _Mixer:
    _whole(scan, 9)
    u, dt, A_name, B, C, skip, bias, z, state = scan.inputs
    conv = known.made(u, _CONV)
    split = known.made(conv.inputs[0], "Split")
    into = known.made(split.inputs[0], "MatMul")
    step = known.made(dt, "MatMul")
    cut = known.made(step.inputs[0], "Split")
    low = known.made(cut.inputs[0], "MatMul")
    K, convolution = _convolution(known, conv)
    A, raise_rank, lower_rank = (
        known.matrix(A_name),
        known.matrix(step.inputs[1]),
        known.matrix(low.inputs[1]),
    )
    (N, D), R = A.shape, raise_rank.shape[0]
    _require(
        split.outputs == (conv.inputs[0], z),
        cut.outputs == (step.inputs[0], B, C),
        low.inputs[0] == u,
        known.rows(conv.inputs[0]) == known.rows(z) == (D,),
        known.rows(B) == known.rows(C) == (N,),
        lower_rank.shape == (D, R + 2 * N),
        raise_rank.shape == (R, D),
        known.matrix(into.inputs[1]).shape[1] == 2 * D,
    )
    parts = (*convolution, Part(lower_rank, True), Part(raise_rank, True), known.row(bias, D), Part(A))
    states = ((conv.inputs[3], conv.outputs[1]), (state, scan.outputs[1]))
    nodes = (split, conv, low, cut, step, scan)
    sizes = (D, N, R, K, 0, 0, 0)
    return _Mixer(MAMBA, sizes, into, scan.outputs[0], (*parts, known.row(skip, D)), states, nodes)


def _mamba2(known: Known, dual: Node) -> _Mixer:
    _whole(dual, 7)
    x, dt, A, B, C, skip, state = dual.inputs
    (H, P), (G, N) = _pair(known, x), _pair(known, B)
    D, mixed = H * P, H * P + 2 * G * N
    views = [known.made(name, "Reshape") for name in (x, B, C)]
    cut = known.made(views[0].inputs[0], "Split")
    conv = known.made(cut.inputs[0], _CONV)
    split = known.made(conv.inputs[0], "Split")
    into = known.made(split.inputs[0], "MatMul")
    K, convolution = _convolution(known, conv)
    _require(len(split.outputs) == 3, split.outputs[1] == conv.inputs[0])
    z, _, raw = split.outputs
    sized, bias, limits = _step_size(known, dt, raw, H)
    gate, norm = _gate(known, dual, z)
    _require(
        cut.outputs == tuple(view.inputs[0] for view in views),
        [known.rows(name) for name in cut.outputs] == [(D,), (G * N,), (G * N,)],
        [known.rows(name) for name in split.outputs] == [(D,), (mixed,), (H,)],
        _pair(known, C) == (G, N),
        len({known.axes[name] for name in (raw, x, B, C)}) == 1,  # no B and T in exchange for each other
        norm.shape == (D,),
        known.matrix(into.inputs[1]).shape[1] == D + mixed + H,
    )
    flat = Part(_need(known.floats(skip, H, P)).reshape(-1))
    parts = (*convolution, bias, known.row(A, H), flat, Part(norm.weight))
    states = ((conv.inputs[3], conv.outputs[1]), (state, dual.outputs[1]))
    nodes = (split, conv, cut, *views, *sized, dual, *gate, *norm.nodes)
    sizes = (D, N, 0, K, H, P, G)
    return _Mixer(MAMBA2, sizes, into, norm.result, parts, states, nodes, norm.eps, limits)


def _pair(known: Known, name: str) -> tuple[int, int]:
    shape = _need(known.rows(name))
    _require(len(shape) == 2)
    return shape[0], shape[1]


def _step_size(known: Known, dt: str, raw: str, H: int) -> tuple[list[Node], Part, tuple[float, float]]:
    """softplus(raw + bias), clipped or not: the nodes, the bias and the limits."""
    node, nodes, least, most = known.graph.producers.get(dt), list[Node](), 0.0, math.inf
    while node is not None and node.kind in ("Clip", "Max", "Min"):
        _require(node not in nodes)  # a graph in which it reads itself
        low, high = _bounds(known, node)
        least, most = max(least, low), min(most, high)
        nodes.append(node)
        node = known.graph.producers.get(node.inputs[0])
    _require(node is not None, node is not None and node.kind == "Softplus", least <= most)
    softplus = _need(node)
    add = known.made(softplus.inputs[0], "Add")
    bias = known.row(other_input(add, raw), H)
    _require(raw in add.inputs)
    return [*nodes, softplus, add], bias, (least, most)


def _bounds(known: Known, node: Node) -> tuple[float, float]:
    """Between which numbers a Clip, Max or Min with constants keeps its first input."""
    names = [*node.inputs[1:], "", ""][:2] if node.kind == "Clip" else [node.inputs[1], node.inputs[1]]
    _require(len(node.inputs) <= (3 if node.kind == "Clip" else 2))
    low = 0.0 if not names[0] or node.kind == "Min" else _need(known.scalar(names[0]))
    high = math.inf if not names[1] or node.kind == "Max" else _need(known.scalar(names[1]))
    return low, high


def _gate(known: Known, dual: Node, z: str) -> tuple[list[Node], Norm]:
    """y silu(z) and the norm of it: the nodes up to there, and the norm."""
    view = known.taken(dual.outputs[0], "Reshape")
    _require(known.rows(view.outputs[0], beside=z) is not None)
    gated = known.taken(view.outputs[0], "Mul")
    silu = known.made(other_input(gated, view.outputs[0]), "Mul")
    sigmoid = known.made(other_input(silu, z), "Sigmoid")
    norm = _need(known.norms_of.get(gated.outputs[0]))
    _require(sigmoid.inputs == (z,), z in silu.inputs, known.rows(view.outputs[0]) == norm.shape)
    return [view, sigmoid, silu, gated], norm
