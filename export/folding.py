"""What a graph computes from weights alone is stored as a weight, without looking at the values.

Layers use their parameters transposed, reshaped, sliced, or as -exp(A). Here such results become
tensors of their own, each a recipe that is followed when the file is written: the parameters are
read, the nodes run on them, and the result is all that is kept, so no two of them are in memory.

Where the results would take more room than what they are made of, as with a matrix that an
embedding and a head share, the nodes stay in the graph and the runtime runs them at load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from streamssm.export.parameters import Parameter

#: results of so few bytes are always stored
SLACK = 1 << 16
#: operators that only move values
_MOVING = {"Transpose", "Reshape", "Gather", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Concat"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: its name, shape and dtype, and how to come by its values."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class _Result:
    """A value made of weights that the rest of the graph reads; for a weight itself, no nodes."""

    value: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    roots: frozenset[str]
    nodes: tuple[onnx.NodeProto, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass
class _Graph:
    """The parts of a graph that depend on weights and stored constants alone."""

    weights: Mapping[str, Parameter]
    constants: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    roots: dict[str, frozenset[str]] = field(default_factory=dict)
    types: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict)

    def cone(self, value: str) -> tuple[onnx.NodeProto, ...]:
        """The nodes that make a value, in order."""
        found: dict[str, onnx.NodeProto] = {}

        def visit(name: str) -> None:
            node = self.makers.get(name)
            if node is not None and node.output[0] not in found:
                for source in node.input:
                    visit(source)
                found[node.output[0]] = node

        visit(value)
        return tuple(found.values())


def fold_weights(model: onnx.ModelProto, weights: Mapping[str, Parameter]) -> list[StoredTensor]:
    """Replace what is computed from weights; return every tensor that the graph then reads.

    ``weights`` are inputs of the graph by name, and the returned tensors are instead.
    """
    graph = model.graph
    parts = _parts(graph, weights)
    results = _results(graph, parts)
    stored = _choose(results, weights)
    names = _names(graph, results, weights)
    tensors = [_tensor(names[result.value], result, parts, model.opset_import) for result in stored]
    _rewrite(graph, parts, {result.value for result in stored}, names)
    for tensor in tensors:
        element = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        graph.input.append(helper.make_tensor_value_info(tensor.name, element, list(tensor.shape)))
    return tensors


def _parts(graph: onnx.GraphProto, weights: Mapping[str, Parameter]) -> _Graph:
    """Nodes whose results have a known shape and come from weights and constants."""
    parts = _Graph(weights, {value.name: value for value in graph.initializer})
    parts.roots |= {name: frozenset([name]) for name in weights}
    parts.roots |= dict.fromkeys(parts.constants, frozenset())
    ends = {value.name for value in graph.output}
    typed = ((value.name, _static(value.type.tensor_type)) for value in graph.value_info)
    parts.types = {name: known for name, known in typed if known is not None}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        known = all(name in parts.roots for name in inputs) and not ends.intersection(node.output)
        if node.domain or not known or node.op_type.startswith("Random") or _has_body(node):
            continue
        roots: frozenset[str] = frozenset().union(*(parts.roots[name] for name in inputs))
        if roots and not all(name in parts.types for name in node.output):
            continue
        parts.roots |= dict.fromkeys(node.output, roots)
        parts.makers |= dict.fromkeys(node.output, node)
    return parts


def _has_body(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _results(graph: onnx.GraphProto, parts: _Graph) -> list[_Result]:
    """What is read outside of the parts that are made of weights, in the order of reading."""
    inside = {id(node) for node in parts.makers.values()}
    outside = [node for node in graph.node if id(node) not in inside]
    found = []
    for name in dict.fromkeys(name for node in outside for name in reads(node) if parts.roots.get(name)):
        if name in parts.weights:
            found.append(_raw(name, parts.weights))
            continue
        shape, dtype = parts.types[name]
        nodes = parts.cone(name)
        operators = tuple(node.op_type for node in nodes if parts.roots[node.output[0]])
        found.append(_Result(name, shape, dtype, parts.roots[name], nodes, operators))
    return found


def _raw(name: str, weights: Mapping[str, Parameter]) -> _Result:
    return _Result(name, weights[name].shape, np.dtype(np.float32), frozenset([name]))


def _static(tensor: onnx.TypeProto.Tensor) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return tuple(dim.dim_value for dim in dims), dtype


def reads(node: onnx.NodeProto) -> Iterable[str]:
    """What a node reads, the graphs in its attributes included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from reads(inner)


def _choose(results: Sequence[_Result], weights: Mapping[str, Parameter]) -> list[_Result]:
    """What to store: all that is made of the same weights if that takes no more room than the
    weights do, else the weights themselves and what is small."""
    chosen: list[_Result] = []
    for group in _groups(results):
        raw = [_raw(name, weights) for name in weights if any(name in result.roots for result in group)]
        if sum(result.nbytes for result in group) <= sum(weight.nbytes for weight in raw) + SLACK:
            chosen += group
            continue
        small = [result for result in group if result.nodes and result.nbytes <= SLACK]
        needed = {name for result in group if result not in small for name in result.roots}
        chosen += small + [weight for weight in raw if weight.value in needed]
    return chosen


def _groups(results: Sequence[_Result]) -> list[list[_Result]]:
    """Results that share weights, directly or through others."""
    groups: list[tuple[set[str], list[_Result]]] = []
    for result in results:
        touching = [group for group in groups if group[0] & result.roots]
        groups = [group for group in groups if not group[0] & result.roots]
        names = set(result.roots).union(*(group[0] for group in touching))
        groups.append((names, [*(other for group in touching for other in group[1]), result]))
    return [group for _, group in groups]


def _names(
    graph: onnx.GraphProto, results: Sequence[_Result], weights: Mapping[str, Parameter]
) -> dict[str, str]:
    """A name for each result: the parameter's, and what was done to it."""
    taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    taken.update(name for node in graph.node for name in node.output)
    names = {}
    for result in results:
        name = result.value
        if result.nodes:
            name = free_name(_told(result, weights), taken)
            taken.add(name)
        names[result.value] = name
    return names | {name: name for name in weights}


def _told(result: _Result, weights: Mapping[str, Parameter]) -> str:
    first = next(name for name in weights if name in result.roots)
    moved = len(result.roots) == 1 and _MOVING.issuperset(result.operators)
    if moved and "Transpose" in result.operators:
        # of a matrix that an embedding and a head share, the transposed form is the head's
        aliases = weights[first].names
        return f"{aliases[-1] if len(aliases) > 1 else first}.T"
    return ".".join([first, *(operator.lower() for operator in result.operators[:4])])


def free_name(name: str, taken: Iterable[str]) -> str:
    """``name``, with a number behind it if it is taken."""
    found, number = name, 1
    while found in taken:
        found, number = f"{name}.{number}", number + 1
    return found


def _tensor(
    name: str, result: _Result, parts: _Graph, opsets: Iterable[onnx.OperatorSetIdProto]
) -> StoredTensor:
    if not result.nodes:
        return StoredTensor(name, result.shape, result.dtype, parts.weights[result.value].array)
    needed = {source for node in result.nodes for source in node.input}
    constants = [value for key, value in parts.constants.items() if key in needed]
    roots = {key: parts.weights[key] for key in parts.weights if key in needed}
    imports = [helper.make_opsetid(entry.domain, entry.version) for entry in opsets if not entry.domain]

    def read() -> np.ndarray:
        from onnx.reference import ReferenceEvaluator

        inputs = [onnx.ValueInfoProto(name=key) for key in roots]
        output = onnx.ValueInfoProto(name=result.value)
        body = helper.make_graph(list(result.nodes), "weight", inputs, [output], constants)
        model = helper.make_model(body, opset_imports=imports)
        (value,) = ReferenceEvaluator(model).run(None, {key: root.array() for key, root in roots.items()})
        return np.asarray(value, result.dtype).reshape(result.shape)

    return StoredTensor(name, result.shape, result.dtype, read)


def _rewrite(graph: onnx.GraphProto, parts: _Graph, stored: set[str], names: Mapping[str, str]) -> None:
    """Drop the nodes whose results are stored, and what they alone have read."""
    kept: list[onnx.NodeProto] = []
    wanted = {value.name for value in graph.output}
    for node in reversed(graph.node):
        derived = bool(node.output) and parts.makers.get(node.output[0]) is node
        if derived and not (wanted - stored).intersection(node.output):
            continue
        wanted.update(reads(node))
        kept.append(node)
    for node in kept:
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)
        _rename(node, names)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    inputs = [value for value in graph.input if value.name not in parts.weights]
    del graph.input[:]
    graph.input.extend(inputs)
    constants = [value for value in graph.initializer if value.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _rename(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Let a node, and those in its attributes, read values under other names."""
    for index, name in enumerate(node.input):
        node.input[index] = renamed.get(name, name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {name for inner in graph.node for name in inner.output}
            outer = {key: value for key, value in renamed.items() if key not in own}
            for value in graph.output:
                value.name = outer.get(value.name, value.name)
            for inner in graph.node:
                _rename(inner, outer)
