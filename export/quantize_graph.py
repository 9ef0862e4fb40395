"""The linear layers of an ONNX graph: finding them, and replacing what they multiply with.

A linear layer is a ``MatMul`` of the main graph whose second input is a constant float32 matrix
[K, N], stored or computed from stored ones. Everything else that is multiplied (recurrences, embedding
tables, convolutions in groups, function bodies) is no linear layer and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from streamssm.export.quantize_blocks import QuantisedMatrix

Array = npt.NDArray[np.float32]

DOMAIN = "com.microsoft"
OPERATOR = "MatMulNBits"
#: activations are rounded to 8 bits in the blocks of the weights, so that integers are multiplied
ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class LinearLayer:
    """One constant matrix [K, N] and the names of the tensors that are products with it.

    ``name`` is the weight's, as in torch.
    """

    name: str
    tensor: str
    weight: Array
    products: tuple[str, ...]


def linear_layers(model: onnx.ModelProto) -> list[LinearLayer]:
    """Every linear layer, in the order of the graph; one that shares its matrix appears once."""
    constants = _Constants(model)
    products: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and not node.domain and node.input[1] in constants:
            products.setdefault(node.input[1], []).append(node.output[0])
    layers: list[LinearLayer] = []
    names: set[str] = set()
    for tensor, outputs in products.items():
        weight = constants.value(tensor)
        if weight.ndim == 2 and weight.dtype == np.float32:
            stored = tensor if tensor.endswith(".T") else constants.root(tensor)
            name = _free(stored.removesuffix(".T"), names)
            names.add(name)
            layers.append(LinearLayer(name, tensor, weight, tuple(outputs)))
    return layers


def with_quantised(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], matrices: Mapping[str, QuantisedMatrix]
) -> onnx.ModelProto:
    """A copy of the model in which the named layers are ``MatMulNBits`` nodes.

    The numbers of ``path.weight`` are the tensor ``path.weight.q``, its scales ``path.weight.scale``.
    """
    tensors, nodes = {}, {}
    for layer in layers:
        if layer.name not in matrices:
            continue
        matrix = matrices[layer.name]
        operands = {f"{layer.name}.q": matrix.packed, f"{layer.name}.scale": matrix.scale}
        tensors |= operands
        attributes = {
            "K": matrix.K,
            "N": matrix.shape[1],
            "bits": matrix.bits,
            "block_size": matrix.block,
            "accuracy_level": ACCURACY_LEVEL,
        }
        nodes |= dict.fromkeys(layer.products, (OPERATOR, DOMAIN, list(operands), attributes))
    return _replaced(model, tensors, nodes)


def with_matrices(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], weights: Mapping[str, Array]
) -> onnx.ModelProto:
    """A copy of the model in which the named layers multiply, in float32, with other matrices."""
    tensors, nodes = {}, {}
    for layer in layers:
        if layer.name in weights:
            stored = f"{layer.name}.restored"
            tensors[stored] = weights[layer.name]
            nodes |= dict.fromkeys(layer.products, ("MatMul", "", [stored], {}))
    return _replaced(model, tensors, nodes)


def _replaced(
    model: onnx.ModelProto,
    tensors: Mapping[str, npt.NDArray[Any]],
    nodes: Mapping[str, tuple[str, str, list[str], dict[str, int]]],
) -> onnx.ModelProto:
    """A copy in which the node that makes each named tensor has another operator and second operand."""
    copy = onnx.ModelProto()
    for name in ("ir_version", "producer_name"):
        setattr(copy, name, getattr(model, name))
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.metadata_props.extend(model.metadata_props)
    graph = copy.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for node in model.graph.node:
        if node.output and node.output[0] in nodes:
            operator, domain, operands, attributes = nodes[node.output[0]]
            inputs, outputs = [node.input[0], *operands], list(node.output)
            node = helper.make_node(operator, inputs, outputs, node.name, domain=domain or None, **attributes)
        graph.node.append(node)
    used = _drop_unused(graph)
    made = {name for node in graph.node for name in node.output}
    graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    graph.initializer.extend(value for value in model.graph.initializer if value.name in used)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    domains = {entry.domain for entry in copy.opset_import}
    if DOMAIN not in domains and any(node.domain == DOMAIN for node in graph.node):
        copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return copy


def _drop_unused(graph: onnx.GraphProto) -> set[str]:
    """Remove the nodes that nothing reads, from the end; return the names that are read."""
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(_reads(node))
            kept.append(node)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    return used


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, the bodies in its attributes included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        found, number = f"{name}.{number}", number + 1
    return found


class _Constants:
    """The tensors of a graph that do not depend on its inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._stored = {value.name: value for value in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._names = {"", *self._stored}
        for node in model.graph.node:
            if self._names.issuperset(_reads(node)) and not node.op_type.startswith("Random"):
                self._names.update(node.output)

    def __contains__(self, name: str) -> bool:
        """Whether the tensor is stored, or made by nodes that read nothing else."""
        return name in self._names

    def root(self, name: str) -> str:
        """The stored tensor that a constant is made of: its first operand's, and so on."""
        while name not in self._stored and self._makers[name].input:
            name = self._makers[name].input[0]
        return name

    def value(self, name: str) -> npt.NDArray[Any]:
        """The constant's value, computed by ONNX's own reference where it is not stored."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        from onnx.reference import ReferenceEvaluator

        nodes, stored = self._cone(name)
        result = onnx.ValueInfoProto(name=name)
        graph = helper.make_graph(nodes, "constant", [], [result], [self._stored[key] for key in stored])
        model = helper.make_model(graph, opset_imports=self._model.opset_import)
        return np.asarray(ReferenceEvaluator(model).run(None, {})[0])

    def _cone(self, name: str) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes, in their order, and stored tensors that a constant is made of."""
        wanted, nodes = {name}, []
        for node in reversed(self._model.graph.node):
            if wanted.intersection(node.output):
                wanted.update(_reads(node))
                nodes.append(node)
        return nodes[::-1], sorted(wanted & self._stored.keys())
