"""Replaces stretches of a model's graph by one node each when the model is loaded.

A node of a graph costs about a microsecond to call, and its result a trip through memory; a small
Mamba block has ten nodes. All operations of a stretch that the native kernels know become one
program (:mod:`streamssm.native.program`), run by the node ``streamssm.native::Fused``.

A stretch must be convex: nothing outside it may stand between two of its operations. Operations
get a level, which grows wherever a path enters or leaves what can be fused, so operations of one
level are never separated by another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy.typing as npt

from streamssm.native.graph import Graph, Node
from streamssm.native.patterns import Reader
from streamssm.native.program import Assembler, Code
from streamssm.native.values import Step
from streamssm.protobuf import Buffer

Array = npt.NDArray[Any]

DOMAIN = "streamssm.native"
_MAX_BUFFERS = 64
_MAX_PORTS = 512
_LEAST_STEPS = 3
#: Instruction sets on which our products of any size are as fast as ONNX Runtime's or faster: of
#: float32 weights, and of quantised ones (benchmarks/products.py). On others only a stretch whose
#: weights stay in the cache is fused, where what is saved is the cost of calls.
_FAST_PRODUCTS = {"avx512", "avx512vnni"}
_FAST_QUANTISED = {"avx512vnni"}
_CACHED = 4 << 20


@dataclass(frozen=True)
class Fused:
    """A rewritten model, how many nodes it has and had, and the states that may be overwritten by
    what is computed from them, with the name of that: a step that fails has not touched them."""

    model: bytes
    nodes: int
    nodes_before: int
    in_place: frozenset[tuple[str, str]]


def fuse(data: Buffer, instructions: str, lend: Callable[[Array], int]) -> Fused | None:
    """:func:`fuse_graph` for a serialised model."""
    return fuse_graph(Graph(data), instructions, lend)


def fuse_graph(graph: Graph, instructions: str, lend: Callable[[Array], int]) -> Fused | None:
    """The model with every stretch that gains from it replaced, or None if there is none.

    ``instructions`` names the instruction set of the kernels, ``lend`` gives the number under which
    they find an array of packed parameters.
    """
    reader = Reader(graph)
    steps = _steps(graph, reader)
    stretches = [stretch for stretch in _stretches(graph, steps) if _worthwhile(stretch, instructions)]
    replaced: dict[Node, Node] = {}
    for stretch in stretches:
        node = _compile(graph, reader, stretch, lend)
        if node is not None:
            replaced.update(dict.fromkeys((inner for step in stretch for inner in step.nodes), node))
    if not replaced:
        return None
    nodes = graph.alive(in_order([replaced.get(node, node) for node in graph.nodes]))
    model = graph.rewritten(nodes, {DOMAIN} - graph.domains)
    return Fused(model, len(nodes), len(graph.nodes), _overwritable(graph, nodes))


def _overwritable(graph: Graph, nodes: list[Node]) -> frozenset[tuple[str, str]]:
    """States of the last node, if it is a fused one that all others run before: it checks everything
    before it writes anything, and after it nothing can fail."""
    last = nodes[-1]
    made = {name: node for node in nodes for name in node.makes}
    before, pending = set[Node](), [last]
    while pending:
        node = pending.pop()
        before.add(node)
        pending += [made[name] for name in node.reads if name in made and made[name] not in before]
    if last.domain != DOMAIN or len(before) < len(nodes):
        return frozenset()
    reads = Counter([*(name for node in nodes for name in node.reads), *graph.results])
    return frozenset((before, after) for before, after in _states(last) if reads[before] == 1)


def _states(fused: Node) -> list[tuple[str, str]]:
    """The states of a fused node and what it leaves of them."""
    words = fused.attributes["program"]
    assert isinstance(words, list)
    return list(zip(fused.inputs[words[1] :], fused.outputs[words[2] :], strict=True))


def _steps(graph: Graph, reader: Reader) -> list[Step]:
    """Every operation on rows, in an order in which each comes after what it reads."""
    position = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs}
    steps = [step for node in graph.nodes if (step := reader.step(node)) is not None]
    return sorted(steps, key=lambda step: max(position[name] for name in step.outputs))


def _worthwhile(stretch: list[Step], instructions: str) -> bool:
    """Long enough to save calls, with a recurrence (the rest is what ONNX Runtime is made for), and
    with products that are no slower here."""
    if len(stretch) < _LEAST_STEPS or not any(step.recurrent for step in stretch):
        return False
    if sum(step.weight_bytes for step in stretch) <= _CACHED:
        return True
    quantised = any(step.quantised for step in stretch)
    return instructions in (_FAST_QUANTISED if quantised else _FAST_PRODUCTS)


def _stretches(graph: Graph, steps: list[Step]) -> list[list[Step]]:
    """Sets of steps of one level that share values, hence also their items."""
    inner = {node for step in steps for node in step.nodes}
    position = {name: index for index, node in enumerate(graph.nodes) for name in node.makes}
    units: list[Step | Node] = [*steps, *(node for node in graph.nodes if node not in inner)]
    units.sort(key=lambda unit: max((position[name] for name in _makes(unit)), default=0))
    levels: dict[str, tuple[int, bool]] = {}
    groups: dict[int, list[Step]] = {}
    for unit in units:
        fusable = isinstance(unit, Step)
        reads = unit.inputs if isinstance(unit, Step) else unit.reads
        level = max(
            (at + (inside != fusable) for at, inside in (levels[name] for name in reads if name in levels)),
            default=0,
        )
        levels.update(dict.fromkeys(_makes(unit), (level, fusable)))
        if isinstance(unit, Step):
            # a program leaves its states when it ends: nothing in it can read them
            levels.update((after, (level, False)) for _, after in unit.states)
            groups.setdefault(level, []).append(unit)
    return [part for group in groups.values() for part in _connected(group)]


def _makes(unit: Step | Node) -> Sequence[str]:
    return unit.outputs if isinstance(unit, Step) else unit.makes


def _connected(steps: list[Step]) -> list[list[Step]]:
    """Split into parts that share no value."""
    parts: list[tuple[set[str], list[Step]]] = []
    for step in steps:
        names = {*step.inputs, *step.outputs}
        touching = [part for part in parts if part[0] & names]
        parts = [part for part in parts if not part[0] & names]
        merged = [other for part in touching for other in part[1]]
        parts.append((names.union(*(part[0] for part in touching)), [*merged, step]))
    order = {step: index for index, step in enumerate(steps)}
    return [sorted(part, key=order.__getitem__) for _, part in parts]


def _compile(graph: Graph, reader: Reader, stretch: list[Step], lend: Callable[[Array], int]) -> Node | None:
    """The node that runs a stretch, or None if its program would be too large."""
    made = {name for step in stretch for name in step.outputs}
    inner = {node for step in stretch for node in step.nodes}
    inputs = list(dict.fromkeys(name for step in stretch for name in step.inputs if name not in made))
    outputs = [
        name
        for step in stretch
        for name in step.outputs
        if name in graph.results or any(node not in inner for node in graph.consumers.get(name, []))
    ]
    uses = Counter([*(name for step in stretch for name in step.inputs), *outputs])
    program = Assembler(uses)
    for name in inputs:
        width = prod(reader.shapes[name])
        slot = program.port("inputs", width)
        program.define(name, width)
        program.emit(Code.INPUT, *program.read(name), slot, width)
    for step in stretch:
        step.emit(program)
        program.release(step.inputs)
        for name in step.outputs:
            if name in outputs:
                width = prod(reader.shapes[name])
                slot = program.port("outputs", width)
                program.emit(Code.OUTPUT, *program.read(name), slot, width)
                program.release([name])
    words = program.words()
    if words[0] > _MAX_BUFFERS or max(words[1:4]) > _MAX_PORTS or not outputs:
        return None
    states = [state for step in stretch for state in step.states]
    trailing = [size for name in outputs for size in (len(reader.shapes[name]), *reader.shapes[name])]
    return Node(
        op="Fused",
        domain=DOMAIN,
        inputs=(*inputs, *(before for before, _ in states)),
        outputs=(*outputs, *(after for _, after in states)),
        attributes={"program": words, "trailing": trailing, "weights": lend(program.packed(graph.release))},
    )


def in_order(nodes: list[Node]) -> list[Node]:
    """Each node once, after what it reads.

    Raises:
        ValueError: a node reads what depends on it, as in a file whose nodes are in no order.
    """
    made = {name: node for node in nodes for name in node.makes}
    order: dict[Node, None] = {}
    entered = set[Node]()
    pending = list(reversed(list(dict.fromkeys(nodes))))
    while pending:
        node = pending[-1]
        waiting = [made[name] for name in node.reads if name in made and made[name] not in order]
        if node in order or not waiting:
            order.setdefault(node)
            pending.pop()
        elif node in entered:
            raise ValueError(f"the {node.kind} that makes {node.outputs[0]!r} depends on itself")
        else:
            entered.add(node)
            pending += waiting
    return list(order)
