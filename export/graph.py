"""Torch module -> ONNX graph: tracing, names, shapes. No manifest, no files, no weights here."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from streamssm.errors import ExportError
from streamssm.export.folding import StoredTensor, fold_weights, free_name, reads
from streamssm.export.functions import OPSET
from streamssm.export.layers.base import State, StreamingLayer
from streamssm.export.parameters import Parameter, parameters_of, shell
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


@dataclass(frozen=True)
class Traced:
    """A graph and, apart from it, the tensors that belong in it; what its outputs are."""

    proto: onnx.ModelProto
    tensors: tuple[StoredTensor, ...]
    outputs: tuple[TracedOutput, ...]

    def complete(self) -> onnx.ModelProto:
        """The whole model in memory."""
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        arrays = ((np.ascontiguousarray(tensor.read()), tensor.name) for tensor in self.tensors)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(*pair) for pair in arrays)
        return model


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


def trace(
    layer: StreamingLayer, input_name: str, outputs: tuple[str, ...], vocabulary: int | None
) -> onnx.ModelProto:
    """The layer as a complete ONNX model, without metadata; see :func:`traced`."""
    return traced(layer, parameters_of(layer, None), input_name, outputs, vocabulary).complete()


def traced(
    layer: StreamingLayer,
    parameters: Sequence[Parameter],
    input_name: str,
    outputs: tuple[str, ...],
    vocabulary: int | None,
) -> Traced:
    """The layer as an ONNX graph with dynamic batch and length, apart from its weights.

    Inputs: the data, then every state by name. Outputs: the results, then ``next.<state>``. The
    values of parameters are not looked at: torch traces a shell of the layer.

    Raises:
        ExportError: torch cannot trace the model, or the graph fails the ONNX checker.
    """
    empty = shell(layer)
    x = example_items(empty, TRACE_HOPS * empty.hop, TRACE_BATCH, vocabulary)
    states = empty.init_state(TRACE_BATCH)
    batch, hops = Dim("batch"), Dim("hops", min=1)
    length = hops if empty.hop == 1 else empty.hop * hops
    shapes = {"x": {0: batch, 1: length}, "states": {name: {0: batch} for name in states}}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Stepper(empty, outputs),
                (x,),
                kwargs={"states": states},
                dynamo=True,
                dynamic_shapes=shapes,
                custom_translation_table=translation_table(),
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
            found = _outputs(program, outputs, x.shape[1])
            moved = _make_inputs(program.model.graph, parameters)
            program.optimize()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"torch cannot trace this model: {_first_cause(error)}") from error
    ports = [input_name, *states], [*outputs, *(NEXT + name for name in states)]
    weights = _give_names(program.model.graph, *ports, moved)
    model = program.model_proto
    tensors = _finish(model, input_name, weights)
    return Traced(model, tuple(tensors), found)


def _outputs(program: torch.onnx.ONNXProgram, names: tuple[str, ...], items: int) -> tuple[TracedOutput, ...]:
    """Each output's item shape and ratio, as they were for ``items`` input items."""
    exported = program.exported_program
    if exported is None:
        raise ExportError("torch kept no record of what it traced; update torch")
    (node,) = (node for node in exported.graph.nodes if node.op == "output")
    found = []
    for name, result in zip(names, node.args[0], strict=False):  # the states follow
        shape = result.meta["val"].shape
        sizes = [size.node.hint if isinstance(size, torch.SymInt) else size for size in shape]
        if len(sizes) < 2:
            raise ExportError(f"output {name!r} has the shape {sizes}; a result is [batch, items, ...]")
        found.append(TracedOutput(name, tuple(sizes[2:]), Fraction(sizes[1], items)))
    return tuple(found)


def _make_inputs(graph: ir.Graph, parameters: Sequence[Parameter]) -> list[tuple[ir.Value, Parameter]]:
    """Turn parameters into inputs: torch's optimiser leaves alone what it does not take for a
    constant. Buffers stay, with their values."""
    known = {f"layer.{name}": parameter for parameter in parameters for name in parameter.names}
    moved = []
    for name, value in list(graph.initializers.items()):
        if name in known:
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
            moved.append((value, known[name]))
    return moved


def _give_names(
    graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str], moved: list[tuple[ir.Value, Parameter]]
) -> dict[str, Parameter]:
    """Name the inputs and outputs, then weights as in torch, then what is left of the same name: an
    output may well be called "linear". Returns the weights by name."""
    ends = [*zip(graph.inputs, inputs, strict=False), *zip(graph.outputs, outputs, strict=True)]
    named = {id(value) for value, _ in ends} | {id(value) for value, _ in moved}
    taken = {*inputs, *outputs}
    weights, buffers = {}, []
    for value, parameter in moved:
        name = free_name(parameter.names[0], taken)
        taken.add(name)
        weights[name] = parameter
        ends.append((value, name))
    for value in graph.initializers.values():
        if (value.name or "").startswith("layer."):
            name = free_name((value.name or "").removeprefix("layer."), taken)
            taken.add(name)
            buffers.append((value, name))
    named |= {id(value) for value, _ in buffers}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    others = [value for value in (*inner, *graph.initializers.values()) if id(value) not in named]
    names = taken | {value.name or "" for value in others}
    for value in others:
        if value.name in taken:
            value.name = free_name(value.name, names)
            names.add(value.name)
    for value, name in (*buffers, *ends):
        value.name = name
    return weights


def _keep_item_shapes(graph: onnx.GraphProto, input_name: str) -> None:
    """Of the shapes inside the graph, keep those of rows [batch, items, ...] of a fixed size: the
    runtime needs them to fuse what it can. Expressions for other lengths mean nothing to it."""
    (length,) = (
        value.type.tensor_type.shape.dim[1].dim_param for value in graph.input if value.name == input_name
    )
    kept = []
    for value in graph.value_info:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.elem_type != onnx.TensorProto.FLOAT or len(dims) < 3 or dims[0].dim_param != "batch":
            continue
        if dims[1].HasField("dim_param") and all(dim.HasField("dim_value") for dim in dims[2:]):
            same = dims[1].dim_param == length
            dims[1].Clear()
            if same:
                dims[1].dim_param = "items"
            kept.append(value)
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _finish(model: onnx.ModelProto, input_name: str, weights: Mapping[str, Parameter]) -> list[StoredTensor]:
    """Bring the graph into the form of our files, and check it; returns the tensors it needs."""
    append_functions(model)
    _shape_buffers(model.graph)
    tensors = fold_weights(model, weights)
    _keep_item_shapes(model.graph, input_name)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    stored = {tensor.name for tensor in tensors}
    ports = [value for value in model.graph.input if value.name not in stored]
    for value in (*ports, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if value.name == input_name:
            dims[1].dim_param = "items"
    model.graph.name = "streamssm"
    model.producer_name, model.producer_version = "streamssm", ""
    _check(model)
    del model.graph.input[:]
    model.graph.input.extend(ports)
    return tensors


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported graph fails the ONNX checker: {error}") from error
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != OPSET:
        raise ExportError(f"torch wrote opset {versions.get('')} instead of {OPSET}; update onnxscript")


def _shape_buffers(graph: onnx.GraphProto) -> None:
    """Store buffers in the shape they are used in: torch leaves the larger ones to be reshaped or
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
    used = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(value for name, value in arrays.items() if name in used)


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
