"""Products with weights in 16 bits, everything else in float32.

A step of a small batch takes as long as reading the weights does, and the products are what tensor cores
speed up; norms, gates, recurrences and states cost little and lose much. So a linear layer is an island: its
input is rounded to 16 bits, its weights are stored in 16 bits, its output is float32 again. Networks are
strongly typed, so a compiler keeps to that.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from streamssm.errors import ExportError
from streamssm.tensorrt.lowering_fold import drop_unused

#: matrices of fewer elements stay as they are
_LEAST = 1024
_TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
#: what still rounds to a finite number of bfloat16, whose mantissa has 7 bits
_LARGEST = {"fp16": 65504.0, "bf16": 2.0**128 - 2.0**120}


def round_weights(model: onnx.ModelProto, products: Collection[str], precision: str) -> None:
    """Round the matrices of linear layers, whose outputs are ``products``, in place. Embedding tables are
    such matrices too. With "fp32" nothing is changed.

    Raises:
        ExportError: a weight is too large for the type.
    """
    if precision == "fp32":
        return
    graph = model.graph
    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) > 1
        and np.prod(tensor.dims) >= _LEAST
    }
    transposed = _transposed(graph, weights)
    islands = _Islands(graph, precision)
    for node in graph.node:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        name = node.input[place] if place is not None and node.output[0] in products else ""
        source = transposed.get(name, name)
        if source in weights:
            islands.add(node, name, weights[source])
        else:
            islands.nodes.append(node)
    islands.finish()
    drop_unused(graph)


def _transposed(graph: onnx.GraphProto, weights: Collection[str]) -> dict[str, str]:
    """Weights that are stored turned around, such as a head's that shares an embedding's table."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }


class _Islands:
    """The nodes of a graph with some of them moved to 16 bits."""

    def __init__(self, graph: onnx.GraphProto, precision: str) -> None:
        self.graph, self.precision, self.type = graph, precision, _TYPES[precision]
        self.nodes: list[onnx.NodeProto] = []
        self._rounded: dict[str, str] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}

    def add(self, node: onnx.NodeProto, name: str, weight: onnx.TensorProto) -> None:
        """A product with a weight, or rows of a table, by way of 16 bits."""
        if weight.name not in self._tensors:
            self._tensors[weight.name] = self._round(weight)
        rounded = self._tensors[weight.name].name
        if name != weight.name:
            rounded = self._once(name, "Transpose", rounded, self._turn(name))
        small = f"{node.output[0]}.{self.precision}"
        # a product that reads this one goes on in 16 bits, which is what rounding it again would give
        self._rounded[node.output[0]] = small
        if node.op_type == "Gather":
            inputs = [rounded, node.input[1]]
        else:
            inputs = [self._once(node.input[0], "Cast", node.input[0], {"to": self.type}), rounded]
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.input[:] = inputs
        moved.output[:] = [small]
        self.nodes.append(moved)
        self.nodes.append(helper.make_node("Cast", [small], [node.output[0]], to=onnx.TensorProto.FLOAT))

    def finish(self) -> None:
        """Put the nodes and weights into the graph; weights that are still read in float32 stay."""
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self._tensors.values())

    def _once(self, name: str, op: str, source: str, attributes: dict[str, Any]) -> str:
        """A node that several may share, for what was called ``name``."""
        if name not in self._rounded:
            self._rounded[name] = f"{name}.{self.precision}"
            self.nodes.append(helper.make_node(op, [source], [self._rounded[name]], **attributes))
        return self._rounded[name]

    def _turn(self, name: str) -> dict[str, Any]:
        (node,) = (node for node in self.graph.node if node.output[0] == name)
        return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def _round(self, weight: onnx.TensorProto) -> onnx.TensorProto:
        values = numpy_helper.to_array(weight)
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= _LARGEST[self.precision]:
            raise ExportError(
                f"weight {weight.name!r} holds {largest:g}, {self.precision} ends at "
                f"{_LARGEST[self.precision]:g}; use --precision bf16 or fp32"
            )
        name = f"{weight.name}.{self.precision}"
        if self.precision == "fp16":
            return numpy_helper.from_array(values.astype(np.float16), name)
        tensor = onnx.TensorProto(name=name, data_type=self.type, dims=weight.dims)
        tensor.raw_data = bfloat16(values).tobytes()
        return tensor


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_out_products(graph: onnx.GraphProto) -> None:
    """Write products of float32 matrices as multiplications and a sum, in place: [..., M, K] and [..., K, N]
    become [..., M, K, N], which a compiler need not store, and a sum over K."""
    halves = _halves(graph)
    axes = {"column": [-1], "row": [-3], "sum": [-2]}
    names = {key: f"{graph.output[0].name}.{key}.axis" for key in axes}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[0] in halves:
            nodes.append(node)
            continue
        out = node.output[0]
        column, row, terms = (f"{out}.{key}" for key in ("column", "row", "terms"))
        nodes += [
            helper.make_node("Unsqueeze", [node.input[0], names["column"]], [column]),
            helper.make_node("Unsqueeze", [node.input[1], names["row"]], [row]),
            helper.make_node("Mul", [column, row], [terms]),
            helper.make_node("ReduceSum", [terms, names["sum"]], [out], keepdims=0),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(np.array(axes[key]), names[key]) for key in axes)
    drop_unused(graph)


def _halves(graph: onnx.GraphProto) -> set[str]:
    """The tensors of 16 bits."""
    found = {tensor.name for tensor in graph.initializer if tensor.data_type in _TYPES.values()}
    for node in graph.node:
        if node.op_type == "Cast":
            half = helper.get_node_attr_value(node, "to") in _TYPES.values()
        else:
            half = node.op_type in ("MatMul", "Gather", "Transpose") and node.input[0] in found
        found.update(node.output if half else ())
    return found
