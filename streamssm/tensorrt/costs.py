"""What a model costs to run, counted in its graph: bytes of weights and states, operations, values.

The nodes are joined to *stages*, which is how every runtime of ours runs them: a product, an operator of
ours, or a run of operations that work element by element (norms, gates, residuals). Everything is
counted for one input item of one stream, but for weights, which all share, and states, which are read and
written once a call. Of one input item a value has ``width`` elements; with a front end that makes one frame
of 160 samples, a feature of 80 columns has a width of 0.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from streamssm.native.graph import Graph, Node, graph_of

if TYPE_CHECKING:
    from streamssm.manifest import Manifest
    from streamssm.onnx_file import ModelFile

Kind = Literal["product", "scan", "dual", "conv", "attention", "mel", "lookup", "pointwise"]


@dataclass(frozen=True)
class Stage:
    """One stage of a model.

    ``parameters`` are the elements of its weights, stored in ``bits`` each (scales and zero points of
    quantised ones included in the bits); ``state`` are bytes of one stream, read and as many written.
    ``operations`` (a multiply-add is two), ``exponentials`` and ``updates`` (elements of a state that are
    advanced) are of one item, ``values`` the elements that it reads and writes. ``nodes`` are those of
    the graph that do work; ``last``: a product into the vocabulary, which a decoder needs of its last
    item only.
    """

    kind: Kind
    name: str
    parameters: int = 0
    bits: float = 32
    state: int = 0
    operations: float = 0.0
    exponentials: float = 0.0
    updates: float = 0.0
    values: float = 0.0
    nodes: int = 1
    last: bool = False

    def weights(self, bits: float | None = None) -> float:
        """Bytes of its weights, as stored or, if they are float32, in so many bits."""
        own = self.bits if bits is None or self.bits < 32 else bits
        return self.parameters * own / 8


@dataclass(frozen=True)
class Costs:
    """What a model costs. ``stored`` are bytes of all weights, lookups included, as they are in the file;
    ``unknown`` are operators whose work is not counted, with how often they occur."""

    stages: tuple[Stage, ...]
    stored: int
    state: int
    unknown: Mapping[str, int]
    input: float
    output: float

    def sum(self, what: Callable[[Stage], float]) -> float:
        """Of all stages."""
        return sum(what(stage) for stage in self.stages)


def costs_of(file: ModelFile) -> Costs:
    """The costs of a model file; weights are not read."""
    return count(graph_of(file, mapped=False), file.manifest)


def count(graph: Graph, manifest: Manifest) -> Costs:
    """The costs of a graph with the states that its manifest lists."""
    counter = _Counter(graph, manifest)
    pieces = list(counter.pieces())
    stages = tuple(_joined(pieces, graph, counter.widths))
    stored = sum(math.ceil(stage.weights()) for stage in stages) + counter.looked_up
    # what comes out is float32, and so is what goes in, but for tokens
    item = 4 if manifest.input.dtype == "float32" else 8
    output = sum(float(o.per_item) * math.prod(o.shape) * 4 for o in manifest.outputs)
    return Costs(
        stages=_marked(stages, manifest),
        stored=stored,
        state=manifest.state_bytes,
        unknown=dict(counter.unknown),
        input=item * math.prod(manifest.input.shape),
        output=output,
    )


#: operations that give another view of the same values
_VIEWS = frozenset({"Split", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Constant", "Dropout"})
#: operations that read no value, only its shape
_SHAPES = frozenset({"Shape", "Size"})
#: operations whose result has one element for each row, or so few that they do not matter
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax"})
#: operations with loops or graphs of their own
_OPAQUE = frozenset({"Scan", "Loop", "If", "LSTM", "GRU", "RNN", "Einsum", "DFT", "STFT"})


@dataclass(frozen=True)
class _Piece:
    """A stage that one node makes, and the node."""

    stage: Stage
    node: Node


class _Counter:
    """Goes through a graph once and knows the width of every value."""

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        self.graph = graph
        self.states = {state.name: state for state in manifest.states}
        self.widths: dict[str, float] = {manifest.input.name: float(math.prod(manifest.input.shape))}
        self.unknown: Counter[str] = Counter()
        self.looked_up = 0

    def pieces(self) -> Iterator[_Piece]:
        """The stages of single nodes, in order."""
        for node in self.graph.nodes:
            known = [self.widths[name] for name in node.reads if name in self.widths]
            if not known or node.op in _SHAPES:
                continue  # arithmetic with shapes, or with constants
            special = _SPECIAL.get(node.op)
            stage = special(self, node) if special is not None else None
            if stage is not None:
                yield _Piece(stage, node)
                continue
            if special is not None or node.op in _OPAQUE or node.domain == "streamssm":
                self.unknown[node.kind] += 1
            self._spread(node, known)
            if node.op not in _VIEWS:
                yield _Piece(Stage("pointwise", node.outputs[0], parameters=self._own(node)), node)

    def _own(self, node: Node) -> int:
        """Elements of the constants that an elementwise operation reads."""
        return sum(
            math.prod(self.graph.dims(name) or (0,)) for name in node.inputs if name not in self.widths
        )

    def _spread(self, node: Node, known: Sequence[float]) -> None:
        """The widths of what an operation gives that is none of the special ones."""
        if node.op == "Concat":
            width = sum(known)  # along time a state is joined, which has no width
        elif node.op in _REDUCTIONS:
            width = 0.0
        else:
            width = max(known)
        for name, part in zip(node.outputs, self._parts(node, width), strict=True):
            self.widths[name] = part

    def _parts(self, node: Node, width: float) -> Sequence[float]:
        if node.op != "Split":
            return [width] * len(node.outputs)
        sizes = self.graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if sizes is None:
            return [width / len(node.outputs)] * len(node.outputs)
        return [width * float(size) / float(sizes.sum()) for size in sizes]

    # Operators that have a rule of their own.

    def product(self, node: Node) -> Stage | None:
        """MatMul and Gemm with a constant matrix."""
        dims = self.graph.dims(node.inputs[1])
        width = self.widths.get(node.inputs[0])
        if dims is None or len(dims) != 2 or width is None:
            return None
        inner, outer = dims[::-1] if node.attributes.get("transB") else dims
        return self._product(node, inner, outer, 32.0)

    def quantised(self, node: Node) -> Stage | None:
        """MatMulNBits: weights in a few bits, and a float32 scale for each block of them."""
        inner, outer = (int(node.attributes[name]) for name in ("K", "N"))  # type: ignore[arg-type]
        bits, block = (int(node.attributes[name]) for name in ("bits", "block_size"))  # type: ignore[arg-type]
        return self._product(node, inner, outer, bits + 32 / block)

    def _product(self, node: Node, inner: int, outer: int, bits: float) -> Stage:
        rows = self.widths[node.inputs[0]] / inner
        self.widths[node.outputs[0]] = rows * outer
        return Stage(
            "product",
            node.outputs[0],
            parameters=inner * outer,
            bits=bits,
            operations=2.0 * inner * outer * rows,
            values=rows * (inner + outer),
        )

    def lookup(self, node: Node) -> Stage | None:
        """Gather: rows of a table by numbers that come in."""
        table, numbers = node.inputs
        dims, axis, width = self.graph.dims(table), node.attributes.get("axis", 0), self.widths.get(numbers)
        if dims is None or width is None or axis != 0:
            return None
        columns = math.prod(dims[1:])
        if len(self.graph.consumers[table]) == 1:  # or it is a matrix too, and counted there
            self.looked_up += 4 * math.prod(dims)
        self.widths[node.outputs[0]] = width * columns
        return Stage("lookup", node.outputs[0], values=2 * width * columns)

    def plain_conv(self, node: Node) -> Stage | None:
        """Conv with a constant weight [out, in / groups, *kernel]."""
        dims, width = self.graph.dims(node.inputs[1]), self.widths.get(node.inputs[0])
        if dims is None or width is None:
            return None
        groups, strides = node.attributes.get("group", 1), node.attributes.get("strides", [1])
        assert isinstance(groups, int)
        assert isinstance(strides, list)
        rows = width / (dims[1] * groups * math.prod(strides))
        self.widths[node.outputs[0]] = rows * dims[0]
        return Stage(
            "product",
            node.outputs[0],
            parameters=math.prod(dims),
            operations=2.0 * math.prod(dims) * rows,
            values=width + rows * dims[0],
        )

    def conv(self, node: Node) -> Stage | None:
        """CausalConv1d: weight [K, D]."""
        width, dims = self.widths[node.inputs[0]], self.graph.dims(node.inputs[1])
        if dims is None:
            return None
        self.widths[node.outputs[0]] = width
        own = math.prod(dims) + dims[-1]
        return Stage(
            "conv",
            node.outputs[0],
            parameters=own,
            state=self._state(node),
            operations=2.0 * dims[0] * width,
            values=2 * width,
        )

    def scan(self, node: Node) -> Stage | None:
        """SelectiveScan: A [N, D]; an exponential for each element of the state, a few for each channel."""
        width, dims = self.widths[node.inputs[0]], self.graph.dims(node.inputs[2])
        if dims is None:
            return None
        self.widths[node.outputs[0]] = width
        read = sum(self.widths.get(name, 0.0) for name in node.inputs)
        return Stage(
            "scan",
            node.outputs[0],
            parameters=math.prod(dims) + 2 * dims[-1],
            state=self._state(node),
            operations=6.0 * math.prod(dims) * width / dims[-1],
            exponentials=(math.prod(dims) + 3.0 * dims[-1]) * width / dims[-1],
            values=read + width,
        )

    def dual(self, node: Node) -> Stage | None:
        """StateSpaceDual: a state of H x N x P, advanced and read once for each item."""
        width = self.widths[node.inputs[0]]
        self.widths[node.outputs[0]] = width
        read = sum(self.widths.get(name, 0.0) for name in node.inputs)
        state = self.states.get(node.inputs[-1])
        if state is None:
            return None
        elements, heads, inner = math.prod(state.shape), state.shape[0], state.shape[2]
        frames = width / (heads * inner)
        return Stage(
            "dual",
            node.outputs[0],
            parameters=3 * heads,
            state=state.nbytes,
            operations=5.0 * elements * frames,
            exponentials=heads * frames,
            updates=elements * frames,
            values=read + width,
        )

    def attention(self, node: Node) -> Stage | None:
        """SlidingWindowAttention: every query against a full window of keys and values."""
        width = self.widths[node.inputs[0]]
        self.widths[node.outputs[0]] = width
        states = [self.states[name] for name in node.inputs if name in self.states]
        rings = [state for state in states if len(state.shape) == 3]
        if not rings:
            return None
        heads, window, dim = rings[0].shape
        frames = sum(self.widths.get(name, 0.0) for name in node.inputs[1:2]) / (heads * dim)
        read = sum(self.widths.get(name, 0.0) for name in node.inputs)
        return Stage(
            "attention",
            node.outputs[0],
            state=sum(state.nbytes for state in states),
            operations=4.0 * window * width,
            exponentials=window * width / dim,
            values=read + width + 2.0 * frames,
        )

    def mel(self, node: Node) -> Stage | None:
        """LogMel: a transform of n_fft samples by the definition, then filters [bins, mels]."""
        dims = self.graph.dims(node.inputs[2])
        samples, hop = (int(node.attributes[name]) for name in ("n_fft", "hop"))  # type: ignore[arg-type]
        if dims is None:
            return None
        bins, mels = dims
        self.widths[node.outputs[0]] = mels / hop
        own = samples + bins * mels
        # the transform is one of real numbers; whoever computes it by the definition reads its matrix too
        operations = (2.0 * samples * 2 * bins + 2.0 * bins * mels) / hop
        return Stage(
            "mel",
            node.outputs[0],
            parameters=own,
            state=self._state(node),
            operations=operations,
            exponentials=mels / hop,
            values=1 + mels / hop,
        )

    def _state(self, node: Node) -> int:
        return sum(self.states[name].nbytes for name in node.inputs if name in self.states)


_OURS: dict[str, Callable[[_Counter, Node], Stage | None]] = {
    "CausalConv1d": _Counter.conv,
    "SelectiveScan": _Counter.scan,
    "StateSpaceDual": _Counter.dual,
    "SlidingWindowAttention": _Counter.attention,
    "LogMel": _Counter.mel,
}
_SPECIAL: dict[str, Callable[[_Counter, Node], Stage | None]] = {
    **_OURS,
    "MatMul": _Counter.product,
    "Gemm": _Counter.product,
    "MatMulNBits": _Counter.quantised,
    "Gather": _Counter.lookup,
    "Conv": _Counter.plain_conv,
}


def _joined(pieces: Sequence[_Piece], graph: Graph, widths: Mapping[str, float]) -> Iterator[Stage]:
    """Neighbouring operations element by element as one stage."""
    for pointwise, group in groupby(pieces, lambda piece: piece.stage.kind == "pointwise"):
        if pointwise:
            yield _one(list(group), graph, widths)
        else:
            yield from (piece.stage for piece in group)


def _one(run: Sequence[_Piece], graph: Graph, widths: Mapping[str, float]) -> Stage:
    """The stage of a run: it reads what it is given, writes what others need, and nothing between."""
    own = {piece.node for piece in run}
    made = {name for node in own for name in node.makes}
    read = {name for node in own for name in node.reads} - made
    written = {
        name
        for name in made
        if name in graph.results or any(node not in own for node in graph.consumers.get(name, ()))
    }
    return replace(
        run[-1].stage,
        parameters=sum(piece.stage.parameters for piece in run),
        values=sum(widths.get(name, 0.0) for name in read | written),
        nodes=len(run),
    )


def _marked(stages: tuple[Stage, ...], manifest: Manifest) -> tuple[Stage, ...]:
    """The head of a token model marked: a product that is the last one, into as many columns as there are
    tokens."""
    products = [index for index, stage in enumerate(stages) if stage.kind == "product"]
    vocabulary = manifest.input.vocabulary
    if not products or vocabulary is None or math.prod(manifest.outputs[0].shape) < vocabulary:
        return stages
    head = products[-1]
    return (*stages[:head], replace(stages[head], last=True), *stages[head + 1 :])
