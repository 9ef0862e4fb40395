"""A model's graph in the operators that TensorRT runs well, for one length of a call or for any.

The file says what our operators mean by plain ONNX bodies that hold for any length, which TensorRT can
hardly run: loops, shapes that depend on shapes. Here each is written in native operators for the one length
that an engine is built for, or left for the plugin library; what is the same for both is brought into a
form that engines can be built from. Numbers are float32 as in the file: :mod:`.dialect_precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from streamssm.errors import ExportError
from streamssm.tensorrt import lowering_ops as ops
from streamssm.tensorrt import lowering_standard as standard
from streamssm.tensorrt.lowering_attention import sliding_window_attention
from streamssm.tensorrt.lowering_fold import drop_empty, drop_unused, fold
from streamssm.tensorrt.lowering_graph import Builder, Facts, Shape, as_initializers, names_in
from streamssm.tensorrt.lowering_shapes import fix_sizes, shapes_for

DOMAIN = "streamssm"
#: what every version of TensorRT that is aimed at can read; operators of ours need no later one
OPSET, IR = 20, 9

Lower = Callable[[Builder, onnx.NodeProto, Facts], None]
_OURS: Mapping[str, Lower] = {
    "CausalConv1d": ops.causal_conv1d,
    "SelectiveScan": ops.selective_scan,
    "StateSpaceDual": ops.state_space_dual,
    "SlidingWindowAttention": sliding_window_attention,
    "LogMel": ops.log_mel,
}
_ALWAYS: Mapping[tuple[str, str], Lower] = {
    ("", "Softplus"): standard.lower_softplus,
    ("com.microsoft", "MatMulNBits"): standard.quantised_product,
}
_FIXED: Mapping[tuple[str, str], Lower] = {
    ("", "GRU"): standard.gru,
    ("", "LSTM"): standard.lstm,
    **{(DOMAIN, name): lower for name, lower in _OURS.items()},
}
#: bodies that TensorRT has no native form of, and that only our own operators need
_REFUSED = {"Scan", "Loop", "If"}


@dataclass(frozen=True)
class Lowered:
    """A model without metadata and functions; ``products`` are the outputs of its linear layers."""

    model: onnx.ModelProto
    products: frozenset[str]


def lower(
    model: onnx.ModelProto, data: str, hop: int, items: int | None, batch: int | None = None
) -> Lowered:
    """The model for calls of ``items`` items of the input ``data``, in native operators; or for calls of
    any number of hops, None, with operators of ours left in it. ``batch`` fixes the number of sequences.

    Raises:
        ExportError: the model has what has no native form.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.value_info[:]
    shapes = shapes_for(graph, data, hop, items, batch)
    fix_sizes(graph, data, items, batch)
    facts = Facts(shapes, {tensor.name: tensor for tensor in graph.initializer})
    builder = Builder(names_in(graph))
    products = _rewrite(graph, builder, facts, items is not None)
    del graph.node[:]
    graph.node.extend(builder.nodes)
    graph.initializer.extend(as_initializers(builder.constants))
    fold(graph, shapes)
    drop_empty(graph)
    drop_unused(graph)
    _give_sizes(graph, shapes)
    _check(graph, items is not None)
    opsets = [helper.make_opsetid("", OPSET)]
    if items is None:
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    graph.name = "streamssm"
    made = helper.make_model(graph, producer_name="streamssm", opset_imports=opsets, ir_version=IR)
    return Lowered(made, frozenset(products))


def _rewrite(graph: onnx.GraphProto, builder: Builder, facts: Facts, fixed: bool) -> set[str]:
    """Put every node or what it becomes into the builder; return the outputs of linear layers."""
    experts = standard.expert_nodes(graph, facts)
    products = set()
    for node in graph.node:
        kind = (node.domain if node.domain != "ai.onnx" else "", node.op_type)
        found = experts.get(node.output[0]) or _ALWAYS.get(kind)
        found = found or (_FIXED.get(kind) if fixed else _without_nothing(node, kind, facts))
        if kind in (("", "MatMul"), ("", "Gather"), ("com.microsoft", "MatMulNBits")):
            products.add(node.output[0])
        if found is None:
            builder.keep(node)
        else:
            found(builder, node, facts)
    return products


def _without_nothing(node: onnx.NodeProto, kind: tuple[str, str], facts: Facts) -> Lower | None:
    """What a node of ours becomes in spite of plugins, because they cannot be given a tensor without
    elements."""
    if kind == (DOMAIN, "CausalConv1d") and facts.sizes(node.input[1], 0) == (1,):
        return ops.causal_conv1d
    if kind == (DOMAIN, "LogMel") and facts.sizes(node.input[3], 1) == (0,):
        return ops.log_mel
    if kind == (DOMAIN, "SlidingWindowAttention") and facts.sizes(node.input[3], 0) == (0,):
        return _turned_by_nothing
    return None


def _turned_by_nothing(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """Attention without positions is one whose first pair turns by an angle of zero."""
    if facts.sizes(node.input[0], 3)[0] < 2:
        raise ExportError("attention without positions and with heads of one column needs --plugins off")
    same = onnx.NodeProto()
    same.CopyFrom(node)
    same.input[3] = b.constant(np.zeros(1, np.float32))
    b.keep(same)


def _give_sizes(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> None:
    """Write what is known of the outputs' sizes; the rest is the number of sequences, or of items."""
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if size is not None:
                dim.dim_value = size


def _check(graph: onnx.GraphProto, fixed: bool) -> None:
    """Refuse what is left that TensorRT cannot run.

    Raises:
        ExportError: it says which operators.
    """
    allowed = {""} if fixed else {"", DOMAIN}
    left = {f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in allowed}
    left |= {node.op_type for node in graph.node if node.op_type in _REFUSED}
    if left:
        raise ExportError(
            f"the model has operators without a form for TensorRT: {', '.join(sorted(left))}; run it with "
            "backend='cpu' or backend='cuda'"
        )
