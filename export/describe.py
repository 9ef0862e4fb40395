"""What a file will say about itself: arguments checked against the model, then the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

import streamssm
from streamssm.errors import ExportError, ManifestError
from streamssm.export.graph import NEXT, TracedOutput
from streamssm.export.layers.base import StreamingLayer
from streamssm.export.parameters import Parameter, parameter_count
from streamssm.manifest import (
    DIGEST_PLACEHOLDER,
    FORMAT,
    Input,
    InputKind,
    Manifest,
    Output,
    OutputKind,
    StateTensor,
    decode_manifest,
)

_DTYPES = {torch.float32: "float32", torch.int64: "int64"}


@dataclass(frozen=True)
class OutputSpec:
    """What one output means: its name in the file, its kind and a label for each column."""

    name: str
    kind: OutputKind = "features"
    labels: tuple[str, ...] = ()


def describe(
    layer: StreamingLayer,
    parameters: Sequence[Parameter],
    source: Input,
    outputs: Sequence[OutputSpec],
    traced: Sequence[TracedOutput],
    block: int | None,
    **said: Any,
) -> Manifest:
    """The manifest of ``layer``, without hash and errors; ``said`` are the fields a user writes.

    Raises:
        ExportError: names, labels or anything said do not fit the model.
    """
    manifest = Manifest(
        format=FORMAT,
        sha256=DIGEST_PLACEHOLDER,
        producer=f"streamssm {streamssm.__version__}",
        input=source,
        outputs=tuple(
            Output(o.name, o.kind, t.shape, t.ratio.as_integer_ratio(), o.labels)
            for o, t in zip(outputs, traced, strict=True)
        ),
        states=tuple(
            StateTensor(state, NEXT + state, spec.shape, _dtype(spec.dtype))
            for state, spec in layer.state_spec().items()
        ),
        block=layer.hop if block is None else block,
        lookahead=layer.lookahead,
        parameters=parameter_count(parameters),
        **said,
    )
    _check_labels(manifest)
    try:
        decode_manifest(manifest.encode())
    except (ManifestError, TypeError) as error:
        raise ExportError(f"the file cannot say this about itself: {error}") from error
    return manifest


def item_dtype(layer: StreamingLayer) -> str:
    """The dtype of the layer's items, by the manifest's name."""
    return _dtype(layer.item_dtype)


def check_model(
    layer: StreamingLayer,
    kind: InputKind,
    vocabulary: int | None,
    outputs: Sequence[OutputSpec],
    block: int | None,
    rate: float | None,
) -> None:
    """Refuse what cannot be exported before any work is done.

    Raises:
        ExportError: not a streaming layer, or arguments that do not fit it.
    """
    _check_kind(layer, kind, vocabulary)
    names = [output.name for output in outputs]
    if not all(names) or not names:
        raise ExportError(f"the outputs are named {names}; give at least one, and a name to each")
    for output in outputs:
        if output.kind not in (kinds := get_args(OutputKind)):
            raise ExportError(
                f"output {output.name!r} is of kind {output.kind!r}, none of {', '.join(kinds)}"
            )
    _check_names([kind, *names], layer.state_spec())
    if block is not None and (block < 1 or block % layer.hop):
        raise ExportError(f"the block of {block} items is not a positive multiple of the hop of {layer.hop}")
    if rate is not None and not 0 < rate < math.inf:
        raise ExportError(f"rate = {rate} must be a positive number of items per second, or None")


def _check_kind(layer: StreamingLayer, kind: InputKind, vocabulary: int | None) -> None:
    if not isinstance(layer, StreamingLayer):
        raise ExportError(
            f"the model is a {type(layer).__name__}, not a StreamingLayer; streamssm.export.convert(model) "
            "makes one of a torch module"
        )
    if kind not in get_args(InputKind):
        raise ExportError(f"kind = {kind!r} is none of {', '.join(get_args(InputKind))}")
    if layer.item_shape is None:
        raise ExportError(
            "the model's first layer takes items of any shape; put one first that knows its own"
        )
    if kind == "tokens" and not vocabulary:
        raise ExportError("a token model needs vocabulary=, the number of different tokens")
    if (kind == "tokens") != (layer.item_dtype == torch.int64):
        raise ExportError(
            f"the model takes items of {layer.item_dtype}, which does not fit the kind {kind!r}"
        )
    if layer.vocabulary is not None and (vocabulary or 0) > layer.vocabulary:
        raise ExportError(f"vocabulary = {vocabulary} is beyond the model's {layer.vocabulary} tokens")


def _check_labels(manifest: Manifest) -> None:
    for output in manifest.outputs:
        columns = output.shape[-1] if output.shape else 1
        if output.labels and len(output.labels) != columns:
            raise ExportError(
                f"output {output.name!r} has {columns} columns and {len(output.labels)} labels; "
                "give one for each column, or none"
            )


def _check_names(ports: Sequence[str], states: Iterable[str]) -> None:
    """No two inputs and no two outputs of the graph may share a name, nor an input and an output."""
    names = [*ports, *(name for state in states for name in (state, NEXT + state))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"{twice[0]!r} names two of input, outputs and states; rename the output or layer")


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in _DTYPES:
        raise ExportError(f"dtype {dtype} has no place in the file; use float32 data and states")
    return _DTYPES[dtype]
