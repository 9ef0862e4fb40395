"""The shapes of a graph's tensors, as far as they follow from the sizes of its inputs.

They are inferred for calls of two different sizes: what is the same in both is fixed. With all sizes given
nothing stays symbolic, and a length that comes out of arithmetic on shapes is found by doing it.

What infers shapes knows only standard operators, so each of ours is replaced by standard ones with outputs
of the same shapes; large weights by inputs of their shapes, so that nothing large is copied.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper, shape_inference

from streamssm.tensorrt.lowering_fold import fold
from streamssm.tensorrt.lowering_graph import Shape, attributes_of

_LARGE = 1024
#: opset of the graphs; the operators that we use are the same in 20
_OPSET = 21
#: hops and sequences of two calls that have no size in common, for what is left open
_CALLS = ((11, 5), (13, 7))
_MOST_ROUNDS = 16


def shapes_for(
    graph: onnx.GraphProto, data: str, hop: int, items: int | None, batch: int | None
) -> dict[str, Shape]:
    """Shapes by name for calls of ``items`` items of ``data`` and ``batch`` sequences, None for any number
    of hops and any number; a size that depends on an open one, or cannot be told, is None."""
    light, sizes = _light(graph)
    one, other = (_concrete(light, sizes, data, items or n * hop, batch or b) for n, b in _CALLS)
    return {
        name: tuple(size if size == other[name][axis] else None for axis, size in enumerate(shape))
        for name, shape in one.items()
        if len(other.get(name, ())) == len(shape)
    }


def _concrete(
    light: onnx.GraphProto, sizes: dict[str, Shape], data: str, items: int, batch: int
) -> dict[str, Shape]:
    """Shapes for one call, of which everything is known. Arithmetic on shapes is done, which lets more be
    inferred, until nothing new is found."""
    graph = onnx.GraphProto()
    graph.CopyFrom(light)
    fix_sizes(graph, data, items, batch)
    shapes = dict(sizes)
    for _ in range(_MOST_ROUNDS):
        found = shapes | _infer(graph)
        if found == shapes:
            break
        shapes = found
        fold(graph, shapes)
    return shapes


def fix_sizes(graph: onnx.GraphProto, data: str, items: int | None, batch: int | None) -> None:
    """Write the number of items of ``data``, and of sequences of every input, where they are given."""
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if batch is not None and len(dims) and dims[0].HasField("dim_param"):
            dims[0].dim_value = batch
        if value.name == data and items is not None:
            dims[1].dim_value = items


def _light(graph: onnx.GraphProto) -> tuple[onnx.GraphProto, dict[str, Shape]]:
    """The graph in standard operators and without large weights; and the shapes of all weights."""
    light = onnx.GraphProto(name="shapes")
    light.input.extend(graph.input)
    for tensor in graph.initializer:
        if _count(tensor) <= _LARGE:
            light.initializer.append(tensor)
        else:
            light.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    sizes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        light.node.extend(_stand_ins(node, light, sizes))
    for value in graph.output:
        kind = value.type.tensor_type.elem_type
        light.output.append(helper.make_tensor_value_info(value.name, kind, None))
    return light, sizes


def _infer(graph: onnx.GraphProto) -> dict[str, Shape]:
    """What onnx itself finds."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    found = shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: _dims(value)
        for value in (*found.input, *found.value_info, *found.output)
        if value.type.tensor_type.HasField("shape")
    }


def _count(tensor: onnx.TensorProto) -> int:
    total = 1
    for size in tensor.dims:
        total *= size
    return total


def _dims(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
    )


def _stand_ins(
    node: onnx.NodeProto, light: onnx.GraphProto, sizes: dict[str, Shape]
) -> Iterator[onnx.NodeProto]:
    """Standard nodes with outputs of the same shapes as those of ``node``."""
    if node.domain == "com.microsoft" and node.op_type == "MatMulNBits":
        given, name = attributes_of(node), f"{node.output[0]}.weight"
        shape = [given["K"], given["N"]]
        light.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        yield helper.make_node("MatMul", [node.input[0], name], [node.output[0]])
    elif node.domain != "streamssm":
        yield node
    elif node.op_type == "LogMel":
        yield from _frames(node, light, sizes)
        yield helper.make_node("Identity", [node.input[3]], [node.output[1]])
    else:
        # the first output is like the first input, the others are states, which come last
        states = node.input[len(node.input) - len(node.output) + 1 :]
        for before, after in zip((node.input[0], *states), node.output, strict=True):
            yield helper.make_node("Identity", [before], [after])


def _frames(
    node: onnx.NodeProto, light: onnx.GraphProto, sizes: dict[str, Shape]
) -> Iterator[onnx.NodeProto]:
    """[B, T] -> [B, T / hop, M]: every hop-th sample, as a column, times a row of M."""
    name, bands = node.output[0], sizes[node.input[2]][1]
    far = 2**62
    constants: dict[str, list[int]] = {
        "start": [0],
        "end": [far],
        "axis": [1],
        "hop": [attributes_of(node)["hop"]],
        "last": [2],
    }
    for key, value in constants.items():
        light.initializer.append(helper.make_tensor(f"{name}.{key}", onnx.TensorProto.INT64, [1], value))
    row = helper.make_tensor_value_info(f"{name}.row", onnx.TensorProto.FLOAT, [1, bands])
    light.input.append(row)
    slicing = [node.input[0], *(f"{name}.{key}" for key in ("start", "end", "axis", "hop"))]
    yield helper.make_node("Slice", slicing, [f"{name}.firsts"])
    yield helper.make_node("Unsqueeze", [f"{name}.firsts", f"{name}.last"], [f"{name}.column"])
    yield helper.make_node("MatMul", [f"{name}.column", f"{name}.row"], [name])
