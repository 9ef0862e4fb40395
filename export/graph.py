"""Torch module -> ONNX graph: tracing, names, shapes. No manifest and no files here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from streamssm.errors import ExportError
from streamssm.export.functions import OPSET
from streamssm.export.layers.base import State, StreamingLayer
from streamssm.export.translation import append_functions, translation_table

TRACE_BATCH = 2
TRACE_HOPS = 6
NEXT = "next."


@dataclass(frozen=True)
class TracedOutput:
    """One result: its name, item shape and output items per input item."""

    name: str
    shape: tuple[int, ...]
    ratio: Fraction


class _Stepper(nn.Module):
    """The layer with the signature of the graph: data and named states in and out."""

    def __init__(self, layer: StreamingLayer, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.outputs = outputs

    def forward(self, x: Tensor, states: State) -> tuple[dict[str, Tensor], State]:
        y, following = self.layer(x, states)
        return named_outputs(y, self.outputs), {name: following[name] for name in states}


def named_outputs(y: Tensor | Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """A layer's result as a dictionary in the order of ``names``.

    Raises:
        ExportError: the names do not match what the layer returns.
    """
    found = dict(y) if isinstance(y, Mapping) else {names[0]: y}
    if set(found) != set(names):
        raise ExportError(f"the model returns {sorted(found)}, the outputs given are {sorted(names)}")
    return {name: found[name] for name in names}


def example_items(layer: StreamingLayer, items: int, batch: int, vocabulary: int | None) -> Tensor:
    """Random input [batch, items, *item_shape]: normal values, or tokens below ``vocabulary``."""
    shape = (batch, items, *layer.item_shape)
    if layer.item_dtype == torch.int64:
        return torch.randint(vocabulary or 2, shape)
    return torch.randn(shape, dtype=layer.item_dtype)


def trace_outputs(
    layer: StreamingLayer, names: tuple[str, ...], vocabulary: int | None
) -> tuple[TracedOutput, ...]:
    """Run the layer once to learn each output's item shape and ratio."""
    items = TRACE_HOPS * layer.hop
    with torch.no_grad():
        y, _ = layer(example_items(layer, items, 1, vocabulary))
    return tuple(
        TracedOutput(name, tuple(value.shape[2:]), Fraction(value.shape[1], items))
        for name, value in named_outputs(y, names).items()
    )


def trace(
    layer: StreamingLayer, input_name: str, outputs: tuple[str, ...], vocabulary: int | None
) -> onnx.ModelProto:
    """The layer as an ONNX model with dynamic batch and length, without metadata.

    Inputs: the data, then every state by name. Outputs: the results, then ``next.<state>``.

    Raises:
        ExportError: torch cannot trace the model, or the graph fails the ONNX checker.
    """
    x = example_items(layer, TRACE_HOPS * layer.hop, TRACE_BATCH, vocabulary)
    states = layer.init_state(TRACE_BATCH)
    batch, hops = Dim("batch"), Dim("hops", min=1)
    length = hops if layer.hop == 1 else layer.hop * hops
    shapes = {"x": {0: batch, 1: length}, "states": {name: {0: batch} for name in states}}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Stepper(layer, outputs),
                (x,),
                kwargs={"states": states},
                dynamo=True,
                dynamic_shapes=shapes,
                custom_translation_table=translation_table(),
                opset_version=OPSET,
                input_names=[input_name, *states],
                output_names=[*outputs, *(NEXT + name for name in states)],
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch cannot trace this model: {_first_cause(error)}") from error
    _free_names(program.model.graph)
    model = program.model_proto
    _finish(model, layer, input_name)
    return model


def _free_names(graph: ir.Graph) -> None:
    """Rename what torch called like an input or output: a head may well be named "linear"."""
    ends = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    names = {value.name for value in (*inner, *graph.initializers.values())} | set(ends)
    for value in (*inner, *graph.initializers.values()):
        if value.name in ends and value is not ends[value.name]:
            stem, number = value.name, 1
            while value.name in names:
                value.name, number = f"{stem}.{number}", number + 1
            names.add(value.name)


def _keep_item_shapes(graph: onnx.GraphProto) -> None:
    """Of the shapes inside the graph, keep those of rows [batch, items, ...] of a fixed size: the
    runtime needs them to fuse what it can. Expressions for lengths mean nothing to it."""
    kept = []
    for value in graph.value_info:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.elem_type != onnx.TensorProto.FLOAT or len(dims) < 3 or dims[0].dim_param != "batch":
            continue
        if dims[1].HasField("dim_param") and all(dim.HasField("dim_value") for dim in dims[2:]):
            dims[1].Clear()
            kept.append(value)
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _finish(model: onnx.ModelProto, layer: StreamingLayer, input_name: str) -> None:
    append_functions(model)
    _shape_weights(model.graph)
    _name_weights(model, layer)
    _keep_item_shapes(model.graph)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if value.name == input_name:
            dims[1].dim_param = "items"
    model.graph.name = "streamssm"
    model.producer_name, model.producer_version = "streamssm", ""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported graph fails the ONNX checker: {error}") from error
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != OPSET:
        raise ExportError(f"torch wrote opset {versions.get('')} instead of {OPSET}; update onnxscript")


def _shape_weights(graph: onnx.GraphProto) -> None:
    """Store weights in the shape they are used in: torch leaves the larger ones to be reshaped or
    transposed by nodes."""
    arrays = {value.name: value for value in graph.initializer}
    for node in list(graph.node):
        if node.op_type not in ("Reshape", "Transpose") or not arrays.keys() >= set(node.input):
            continue
        first, *rest = (onnx.numpy_helper.to_array(arrays[name]) for name in node.input)
        if node.op_type == "Reshape":
            shaped = first.reshape(rest[0])
        else:
            shaped = first.transpose(*(list(attribute.ints) for attribute in node.attribute))
        name = node.output[0]
        arrays[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(shaped), name)
        graph.node.remove(node)
    used = _names_read(graph) | {value.name for value in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(value for name, value in arrays.items() if name in used)


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """What the nodes of a graph and of the graphs in them take as inputs."""
    names = {name for node in graph.node for name in node.input}
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    inner = [graph for attribute in attributes for graph in (attribute.g, *attribute.graphs)]
    return names.union(*(_names_read(graph) for graph in inner if graph.node or graph.output))


def _name_weights(model: onnx.ModelProto, layer: StreamingLayer) -> None:
    """Give weights the names they have in torch; the optimiser renames those it transposes."""
    names: dict[bytes, str] = {}
    first: dict[str, str] = {}
    for aliases in _parameter_names(layer):
        first |= dict.fromkeys(aliases, aliases[0])
        parameter = layer.get_parameter(aliases[0]).detach()
        # of a matrix that an embedding and a head share, the transposed form is the head's
        for transposed in _transposed(parameter):
            names.setdefault(_fingerprint(transposed), f"{aliases[-1]}.T")
        names.setdefault(_fingerprint(parameter), aliases[0])
    graph = model.graph
    taken = {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    taken.update(name for node in graph.node for name in node.output)
    renamed = {}
    for value in graph.initializer:
        wanted = value.name.removeprefix("layer.")
        wanted = first.get(wanted, wanted)
        if wanted == value.name and value.dims:
            content = torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
            wanted = names.get(_fingerprint(content), wanted)
        if wanted not in taken:
            taken.add(wanted)
            renamed[value.name] = wanted
            value.name = wanted
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def _parameter_names(layer: StreamingLayer) -> list[list[str]]:
    """The names of each parameter, in order; of a shared one there are several."""
    names: dict[int, list[str]] = {}
    for name, parameter in layer.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _transposed(parameter: Tensor) -> list[Tensor]:
    """The forms with the axes reversed in which layers multiply with a parameter."""
    if parameter.ndim == 2:
        return [parameter.T]
    if parameter.ndim == 3:  # a convolution [out, in, K]: dense, and depthwise
        return [parameter.permute(2, 1, 0).flatten(0, 1)]
    return []


def _fingerprint(tensor: Tensor) -> bytes:
    shape = ",".join(map(str, tensor.shape))
    data = tensor.contiguous().cpu().numpy().tobytes()
    return hashlib.sha256(f"{shape} {tensor.dtype} ".encode() + data).digest()


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter chats on every channel; its errors still arrive as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
