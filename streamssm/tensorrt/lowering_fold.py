"""Arithmetic on shapes that is known once the length of a call is; what nothing reads; what has no elements.

A compiler would fold constants too, but a shape that it has to follow through a dozen operators keeps it
from fusing what lies between, and an empty tensor has no address to bind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from streamssm.tensorrt.lowering_graph import Array, Shape, attributes_of, reads

#: results of more elements are left to be computed: they would only make the file larger
_MOST = 1 << 14
_NEVER_FOLDED = {"RandomNormal", "RandomUniform", "If", "Loop", "Scan"}


def fold(graph: onnx.GraphProto, shapes: dict[str, Shape]) -> None:
    """Replace what is known by constants, in place."""
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if int(np.prod(tensor.dims)) <= _MOST
    }
    stored = set(known)
    kept: list[onnx.NodeProto] = []
    fixed = {value.name for value in graph.output}
    for node in graph.node:
        values = None if fixed & set(node.output) else _evaluated(node, known, shapes)
        if values is not None:
            known |= dict(zip(node.output, values, strict=True))
        elif not _simplified(node, known, shapes, kept):
            kept.append(node)
    _guess_batches(kept, known)
    needed = {name for node in kept for name in reads(node)} | fixed
    made = [
        numpy_helper.from_array(known[name], name) for name in sorted(known.keys() - stored) if name in needed
    ]
    graph.initializer.extend(made)
    del graph.node[:]
    graph.node.extend(kept)


def _evaluated(node: onnx.NodeProto, known: dict[str, Array], shapes: dict[str, Shape]) -> list[Array] | None:
    """The outputs of a node, if they are known and few."""
    if node.op_type == "Shape":
        return _sizes(node, shapes)
    if node.op_type == "Constant":
        (value,) = _run(node, {})
        return [value] if value.size <= _MOST else None
    if (
        node.domain
        or node.op_type in _NEVER_FOLDED
        or not known.keys() >= {name for name in reads(node) if name}
    ):
        return None
    arrays = _run(_single(node), {name: known[name] for name in node.input if name})
    return arrays if all(array.size <= _MOST for array in arrays) else None


def _run(proto: onnx.NodeProto | onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return [np.asarray(output) for output in ReferenceEvaluator(proto).run(None, feeds)]


def _single(node: onnx.NodeProto) -> onnx.ModelProto:
    """A model of one node; types do not matter to the evaluator."""
    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "one", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def _sizes(node: onnx.NodeProto, shapes: dict[str, Shape]) -> list[Array] | None:
    """Of a Shape node that asks for fixed sizes only."""
    shape = shapes.get(node.input[0])
    if shape is None:
        return None
    given = attributes_of(node)
    asked = shape[given.get("start", 0) : given.get("end", len(shape))]
    return None if None in asked else [np.asarray(asked, np.int64)]


def _simplified(
    node: onnx.NodeProto, known: dict[str, Array], shapes: dict[str, Shape], kept: list[onnx.NodeProto]
) -> bool:
    """Whether something simpler was kept instead: a choice that is made already, a Concat with nothing,
    a Pad by nothing."""
    same = None
    if node.op_type == "Where" and node.input[0] in known:
        choice = known[node.input[0]]
        same = node.input[1] if choice.all() else None if choice.any() else node.input[2]
    if node.op_type == "Pad" and node.input[1] in known and not known[node.input[1]].any():
        same = node.input[0]
    if node.op_type == "Concat":
        full = [name for name in node.input if 0 not in shapes.get(name, ())]
        if len(full) == 1 and len(node.input) > 1:
            same = full[0]
        elif len(full) < len(node.input) and full:
            del node.input[:]
            node.input.extend(full)
    # broadcasting may have made the result larger than what was chosen
    if same is None or shapes.get(same) is None or shapes.get(same) != shapes.get(node.output[0]):
        return False
    kept.append(helper.make_node("Identity", [same], [node.output[0]]))
    return True


def _guess_batches(nodes: Sequence[onnx.NodeProto], known: dict[str, Array]) -> None:
    """A shape of known sizes but one is known: the one is what is left, -1."""
    makers = {output: node for node in nodes for output in node.output}
    for node in nodes:
        maker = makers.get(node.input[1]) if node.op_type == "Reshape" else None
        if maker is None or maker.op_type != "Concat":
            continue
        parts = [known.get(name) for name in maker.input]
        sizes = [size for part in parts if part is not None for size in part.tolist()]
        if (
            sum(part is None for part in parts) == 1
            and min(sizes, default=1) > 0
            and _single_size(maker, parts, makers)
        ):
            name = f"{node.output[0]}.shape"
            known[name] = np.concatenate([[-1] if part is None else part for part in parts]).astype(np.int64)
            node.input[1] = name
            del node.attribute[:]


def _single_size(
    maker: onnx.NodeProto, parts: Sequence[Array | None], makers: dict[str, onnx.NodeProto]
) -> bool:
    """Whether the unknown part of a shape is one size: that of one axis."""
    (unknown,) = (name for name, part in zip(maker.input, parts, strict=True) if part is None)
    source = makers.get(unknown)
    if source is None or source.op_type != "Shape":
        return False
    given = attributes_of(source)
    return bool(given.get("end", 0) - given.get("start", 0) == 1)


def drop_empty(graph: onnx.GraphProto) -> None:
    """Take inputs without elements, and outputs that are such, out of the graph: nothing can be bound to
    them. A stream's state is complete without."""
    for ports in (graph.input, graph.output):
        full = [value for value in ports if 0 not in _sizes_of(value)]
        del ports[:]
        ports.extend(full)


def _sizes_of(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
    )


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that no output depends on."""
    needed = Counter(value.name for value in graph.output)
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(reads(node))
    kept.reverse()
    used = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field, values in ((graph.node, kept), (graph.initializer, used)):
        del field[:]
        field.extend(values)
