"""``export``: a streaming torch model -> one self-describing ``.onnx`` file.

The file is written under a temporary name, opened by the runtime, compared with the torch
model in float64 (whole, random splits, single hops), and only then put in place.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch

import streamssm
from streamssm.atomic import write_bytes
from streamssm.errors import ExportError, ManifestError, OutputError
from streamssm.export.golden import Golden, certify
from streamssm.export.graph import NEXT, trace, trace_outputs
from streamssm.export.layers.base import StreamingLayer
from streamssm.manifest import (
    DIGEST_PLACEHOLDER,
    FORMAT,
    GOLDEN_KEY,
    MANIFEST_KEY,
    EventRule,
    Input,
    InputKind,
    Manifest,
    Output,
    OutputKind,
    StateTensor,
    decode_manifest,
)
from streamssm.onnx_file import read_model_file, seal

MAX_BYTES = 2**31 - 1
_DTYPES = {torch.float32: "float32", torch.int64: "int64"}


@dataclass(frozen=True)
class OutputSpec:
    """What one output means: its name in the file, its kind and a label for each column."""

    name: str
    kind: OutputKind = "features"
    labels: tuple[str, ...] = ()


def export(
    model: StreamingLayer,
    path: str | os.PathLike[str],
    *,
    kind: InputKind = "features",
    rate: float | None = None,
    vocabulary: int | None = None,
    outputs: Sequence[OutputSpec] = (OutputSpec("output"),),
    name: str | None = None,
    block: int | None = None,
    events: EventRule | None = None,
    description: str = "",
    license: str = "",  # noqa: A002  the manifest's word
    front_end: str = "",
    example: np.ndarray | None = None,
    provenance: dict[str, Any] | None = None,
) -> Manifest:
    """Export ``model`` to ``path`` and return the manifest that the file carries.

    Args:
        model: any streaming layer; moved to the CPU and to evaluation mode in a copy.
        kind: what one input item is; ``tokens`` needs ``vocabulary``.
        rate: input items per second; None for inputs without a clock.
        outputs: names and meanings, in order; a model that returns a dictionary has one for
            each of its keys.
        block: default input items per backend call, a multiple of the model's hop.
        example: input items [T, *item_shape] for the golden vectors; random by default.
        provenance: anything JSON can hold about where the weights come from.

    Raises:
        ExportError: an argument does not fit the model, the model cannot be traced, or the file
            differs from it by more than the tolerance table allows. Nothing is written then.
        OutputError: ``path`` cannot be written.
    """
    path = Path(path)
    _require_writable(path)
    _check(model, kind, vocabulary, block)
    _check_values(model, rate)
    layer = copy.deepcopy(model).cpu().eval()
    spec = Input(
        name=kind,
        kind=kind,
        dtype=_dtype(layer.item_dtype),
        shape=tuple(layer.item_shape),
        rate=rate,
        hop=layer.hop,
        vocabulary=vocabulary,
        front_end=front_end,
    )
    names = tuple(output.name for output in outputs)
    if not all(names) or not names:
        raise ExportError(f"the outputs are named {list(names)}; give at least one, and a name to each")
    traced = trace_outputs(layer, names, vocabulary)
    manifest = Manifest(
        format=FORMAT,
        name=name or path.stem,
        sha256=DIGEST_PLACEHOLDER,
        producer=f"streamssm {streamssm.__version__}",
        input=spec,
        outputs=tuple(
            Output(o.name, o.kind, t.shape, t.ratio.as_integer_ratio(), o.labels)
            for o, t in zip(outputs, traced, strict=True)
        ),
        states=tuple(
            StateTensor(state, NEXT + state, s.shape, _dtype(s.dtype))
            for state, s in layer.state_spec().items()
        ),
        block=layer.hop if block is None else block,
        lookahead=layer.lookahead,
        parameters=sum(p.numel() for p in layer.parameters()),
        description=description,
        license=license,
        events=events,
        provenance=provenance or {},
    )
    _check_names(manifest)
    _check_labels(manifest)
    try:
        decode_manifest(manifest.encode())
    except (ManifestError, TypeError) as error:
        raise ExportError(f"the file cannot say this about itself: {error}") from error
    proto = trace(layer, kind, names, vocabulary)
    golden = Golden.of(layer, spec, names, example)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        draft.write_bytes(_serialise(proto, manifest, golden))
        try:
            errors = certify(streamssm.load(draft), golden)
        except ManifestError as error:
            raise ExportError(f"the traced graph is not what the model says: {error}") from error
    write_bytes(path, _serialise(proto, msgspec.structs.replace(manifest, errors=errors), golden))
    return read_model_file(path).manifest


def _serialise(proto: onnx.ModelProto, manifest: Manifest, golden: Golden) -> bytes:
    """The file's bytes, sealed with their own hash."""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {MANIFEST_KEY: manifest.encode(), GOLDEN_KEY: golden.encode()})
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(
            f"the model takes {proto.ByteSize()} bytes, one file holds {MAX_BYTES}; use a smaller model"
        )
    return seal(proto.SerializeToString(deterministic=True))


def _check(layer: StreamingLayer, kind: InputKind, vocabulary: int | None, block: int | None) -> None:
    if not isinstance(layer, StreamingLayer):
        raise ExportError(f"the model is a {type(layer).__name__}, not a StreamingLayer; wrap it in one")
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
    if block is not None and (block < 1 or block % layer.hop):
        raise ExportError(f"the block of {block} items is not a positive multiple of the hop of {layer.hop}")


def _check_values(layer: StreamingLayer, rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise ExportError(f"rate = {rate} must be a positive number of items per second, or None")
    for name, parameter in layer.named_parameters():
        if parameter.dtype != torch.float32:
            raise ExportError(
                f"weight {name} has dtype {parameter.dtype}; call model.float() before exporting"
            )
        if not parameter.isfinite().all():
            raise ExportError(f"weight {name} holds NaN or infinity; the training has diverged")


def _check_labels(manifest: Manifest) -> None:
    for output in manifest.outputs:
        columns = output.shape[-1] if output.shape else 1
        if output.labels and len(output.labels) != columns:
            raise ExportError(
                f"output {output.name!r} has {columns} columns and {len(output.labels)} labels; "
                "give one for each column, or none"
            )


def _check_names(manifest: Manifest) -> None:
    """No two inputs and no two outputs of the graph may share a name, nor an input and an output."""
    states = [name for state in manifest.states for name in (state.name, state.next)]
    names = [manifest.input.name, *(output.name for output in manifest.outputs), *states]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"{twice[0]!r} names two of input, outputs and states; rename the output or layer")


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in _DTYPES:
        raise ExportError(f"dtype {dtype} has no place in the file; use float32 data and states")
    return _DTYPES[dtype]


def _require_writable(path: Path) -> None:
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write to {path.parent}: create the folder or choose another")
