"""``export``: a streaming torch model -> one self-describing ``.onnx`` file.

The file is written under a temporary name, opened by the runtime, compared with the torch
model in float64 (whole, random splits, single hops), and only then put in place.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

import streamssm
from streamssm.atomic import write_bytes
from streamssm.errors import ExportError, ManifestError, OutputError
from streamssm.export.describe import OutputSpec, check_model, describe, item_dtype
from streamssm.export.golden import Golden, certify
from streamssm.export.graph import trace
from streamssm.export.layers.base import StreamingLayer
from streamssm.manifest import (
    GOLDEN_KEY,
    MANIFEST_KEY,
    CertifiedError,
    EventRule,
    Input,
    InputKind,
    Manifest,
)
from streamssm.onnx_file import read_model_file, seal

MAX_BYTES = 2**31 - 1


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
    check_model(model, kind, vocabulary, block, rate)
    layer = copy.deepcopy(model).cpu().eval()
    manifest = describe(
        layer,
        Input(kind, kind, item_dtype(layer), tuple(layer.item_shape), rate, layer.hop, vocabulary, front_end),
        outputs,
        block=block,
        name=name or path.stem,
        description=description,
        license=license,
        events=events,
        provenance=provenance or {},
    )
    golden = Golden.of(layer, manifest, example)
    proto = trace(layer, kind, tuple(golden.outputs), vocabulary)
    errors = _certify_draft(_serialise(proto, manifest, golden), golden)
    write_bytes(path, _serialise(proto, msgspec.structs.replace(manifest, errors=errors), golden))
    return read_model_file(path).manifest


def _certify_draft(data: bytes, golden: Golden) -> tuple[CertifiedError, ...]:
    """Open the file's bytes with the runtime and compare it with the torch model."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        draft.write_bytes(data)
        try:
            return certify(streamssm.load(draft), golden)
        except ManifestError as error:
            raise ExportError(f"the traced graph is not what the model says: {error}") from error


def _serialise(proto: onnx.ModelProto, manifest: Manifest, golden: Golden) -> bytes:
    """The file's bytes, sealed with their own hash."""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {MANIFEST_KEY: manifest.encode(), GOLDEN_KEY: golden.encode(manifest)})
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(
            f"the model takes {proto.ByteSize()} bytes, one file holds {MAX_BYTES}; use a smaller model"
        )
    return seal(proto.SerializeToString(deterministic=True))


def _require_writable(path: Path) -> None:
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write to {path.parent}: create the folder or choose another")
