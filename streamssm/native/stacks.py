"""Turns each run of equal Mamba or Mamba-2 blocks into one node for a GPU, when a model is loaded.

The node is ``streamssm.native::Stack`` (kernels/ort/cuda_stack.cpp); one that also looks its input up in an
embedding is ``TokenStack``, and a last norm and the product after it are part of it where they follow. The
matrices of a run may be rounded to 16 bits on the way, once; vectors and states stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from streamssm.errors import BackendError
from streamssm.native.blocks import Block, Known, Part, find_blocks
from streamssm.native.fusion import DOMAIN, in_order
from streamssm.native.graph import Graph, Node
from streamssm.native.pack import aligned_floats
from streamssm.native.values import Array

#: what matrices may be rounded to, with the library's number for it
PRECISIONS = {"float32": 0, "float16": 1, "bfloat16": 2}

_ALIGNMENT = 256  # bytes
_ROWS = 1 << 12  # of a matrix, rounded at a time
_INT64 = 7


@dataclass(frozen=True)
class Stacked:
    """A rewritten model: how many runs became a node each, and of how many blocks in all."""

    model: bytes
    stacks: int
    blocks: int


@dataclass(eq=False)
class _Stack:
    """A run of blocks, and what stands before and after it."""

    blocks: list[Block]
    x: str
    y: str
    nodes: set[Node]
    head: list[Part] = field(default_factory=list)  # the last norm and a product
    embedding: Array | None = None  # [vocabulary, d_model]

    @property
    def sizes(self) -> list[int]:
        """layers, d_model, D, N, R, K, H, P, G, inputs, outputs"""
        inputs = 0 if self.embedding is None else len(self.embedding)
        outputs = self.head[1].array.shape[1] if self.head else 0
        return [len(self.blocks), *self.blocks[0].form[1], inputs, outputs]


def stack_graph(
    graph: Graph, precision: str, tokens: tuple[str, int | None], lend: Callable[[Array], int]
) -> Stacked | None:
    """The model with every run of blocks replaced, or None if it has none.

    ``precision`` is one of :data:`PRECISIONS`; ``tokens`` names the model's input and the number below
    which its values are, None if nothing bounds them; ``lend`` gives the number under which the library
    finds an array of parameters.

    Raises:
        BackendError: a weight is too large for ``precision``.
    """
    known = Known(graph)
    stacks = _runs(known, find_blocks(known))
    if not stacks:
        return None
    replaced: dict[Node, Node] = {}
    for stack in stacks:
        _take_head(known, stack)
        _take_embedding(known, stack, *tokens)
        node = _node(graph, stack, precision, lend)
        replaced.update(dict.fromkeys(stack.nodes, node))
    nodes = graph.alive(in_order([replaced.get(node, node) for node in graph.nodes]))
    model = graph.rewritten(nodes, {DOMAIN} - graph.domains)
    return Stacked(model, len(stacks), sum(len(stack.blocks) for stack in stacks))


def _runs(known: Known, blocks: Sequence[Block]) -> list[_Stack]:
    """Blocks of one form that follow each other, nothing else reading what passes between them."""
    stacks: dict[str, _Stack] = {}  # by where they end
    for block in blocks:
        stack = stacks.get(block.x)
        readers = known.graph.consumers.get(block.x, [])
        follows = stack is not None and stack.blocks[0].form == block.form
        if (
            stack is None
            or not follows
            or block.x in known.graph.results
            or not block.nodes.issuperset(readers)
        ):
            stack = _Stack([], block.x, block.y, set())
        else:
            del stacks[block.x]
        stack.blocks.append(block)
        stack.nodes |= block.nodes
        stack.y = block.y
        stacks[block.y] = stack
    return list(stacks.values())


def _take_head(known: Known, stack: _Stack) -> None:
    """The norm and the product after the last block, if nothing else reads either's input."""
    norm = known.norms_of.get(stack.y)
    if norm is None or norm.eps != stack.blocks[0].form[2] or not known.closed(stack.nodes, _ends(stack)):
        return
    product = known.only(norm.result, "MatMul")
    matrix = None if product is None else known.graph.constant(product.inputs[1])
    if product is None or matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32:
        return
    nodes = stack.nodes.union(norm.nodes, [product])
    result = product.outputs[0]
    if matrix.shape[0] == norm.shape[0] and matrix.size and known.closed(nodes, _ends(stack, result)):
        stack.head = [Part(norm.weight), Part(matrix, True)]
        stack.y, stack.nodes = result, nodes


def _take_embedding(known: Known, stack: _Stack, name: str, vocabulary: int | None) -> None:
    """The table that the first block's input is looked up in, if the run is all that reads it and no token
    can lie outside: a lookup by a state, which may hold anything, stays in the graph."""
    gather = known.graph.producers.get(stack.x)
    if gather is None or gather.kind != "Gather" or gather.attributes.get("axis", 0) != 0:
        return
    table, tokens = known.graph.constant(gather.inputs[0]), gather.inputs[1]
    port = next((port for port in known.graph.inputs if port.name == tokens == name), None)
    if table is None or table.ndim != 2 or table.dtype != np.float32 or port is None:
        return
    fits = vocabulary is not None and vocabulary <= len(table) and table.shape[1] == stack.sizes[1]
    nodes = {*stack.nodes, gather}
    if fits and port.dtype == _INT64 and len(port.dims) == 2 and known.closed(nodes, _ends(stack)):
        stack.embedding, stack.x, stack.nodes = table, tokens, nodes


def _ends(stack: _Stack, y: str = "") -> Iterable[str]:
    """What a run leaves: its result, or ``y`` instead, and the states."""
    return [y or stack.y, *(after for block in stack.blocks for _, after in block.states)]


def _node(graph: Graph, stack: _Stack, precision: str, lend: Callable[[Array], int]) -> Node:
    kind, _, eps, least, most = stack.blocks[0].form
    states = [state for block in stack.blocks for state in block.states]
    weights, places = _packed(stack, precision, graph.release)
    return Node(
        op="Stack" if stack.embedding is None else "TokenStack",
        domain=DOMAIN,
        inputs=(stack.x, *(before for before, _ in states)),
        outputs=(stack.y, *(after for _, after in states)),
        attributes={
            "kind": kind,
            "type": PRECISIONS[precision],
            "sizes": stack.sizes,
            "places": places,
            "eps": eps,
            "dt_least": least,
            "dt_most": most,
            "weights": lend(weights),
        },
    )


# Weights.


def _packed(stack: _Stack, precision: str, release: Callable[[], None]) -> tuple[Array, list[int]]:
    """All parameters in one piece of memory, and where each begins, in bytes."""
    parts = [part for block in stack.blocks for part in block.parts] + stack.head
    tied = stack.embedding is not None and _is_head(stack, stack.embedding)
    if stack.embedding is not None and not tied:
        parts.append(Part(stack.embedding.T, True))
    sizes = [part.array.size * (2 if part.matrix and PRECISIONS[precision] else 4) for part in parts]
    places = [0]
    for size in sizes:
        places.append(places[-1] + size + -size % _ALIGNMENT)
    weights = aligned_floats(places.pop() // 4)
    memory = weights.view(np.uint8)
    for part, place, size in zip(parts, places, sizes, strict=True):
        _fill(part, memory[place : place + size], precision)
        release()
    return weights, [*places, places[-1]] if tied else places


def _is_head(stack: _Stack, embedding: Array) -> bool:
    """Whether the embedding is the matrix of the head too."""
    if not stack.head or stack.head[1].array.shape != embedding.shape[::-1]:
        return False
    head = stack.head[1].array
    return np.array_equal(head[0], embedding[:, 0]) and np.array_equal(head.T, embedding)


def _fill(part: Part, memory: Array, precision: str) -> None:
    """Write a parameter: a matrix as ``[out, in]``, rounded, in pieces."""
    array = part.array.T if part.matrix else part.array
    if not part.matrix or precision == "float32":
        memory.view(np.float32).reshape(array.shape)[...] = array
        return
    target = memory.view(np.uint16).reshape(array.shape)
    for first in range(0, len(array), _ROWS):
        target[first : first + _ROWS] = rounded(array[first : first + _ROWS], precision)


def rounded(values: Array, precision: str) -> Array:
    """float32 values as the bits of the nearest ones of 16 bits, halfway cases to even.

    Raises:
        BackendError: a finite value is too large.
    """
    if precision == "float16":
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        bits, finite = halves.view(np.uint16), np.isfinite(halves)
    else:
        words = np.ascontiguousarray(values).view(np.uint32)
        bits = (
            (words + np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        ).astype(np.uint16)
        finite = (bits & 0x7F80) != 0x7F80
    if not finite.all():
        worst = float(np.abs(values[~finite]).max())
        raise BackendError(f"a weight of {worst:g} does not fit {precision}; load with precision='float32'")
    return bits
