"""``export``: a streaming torch model -> one self-describing ``.onnx`` file.

The file is written under a temporary name, opened by the runtime, compared with the torch
model in float64 (whole, random splits, single hops), and only then put in place.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamssm.atomic import write_bytes
from streamssm.export.certify import certify
from streamssm.export.describe import OutputSpec, check_model, describe, item_dtype
from streamssm.export.golden import golden_of
from streamssm.export.graph import trace
from streamssm.export.layers.base import StreamingLayer
from streamssm.export.writing import require_writable, serialise
from streamssm.manifest import EventRule, Input, InputKind, Manifest
from streamssm.onnx_file import read_model_file


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
    require_writable(path)
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
    golden = golden_of(layer, manifest, example)
    proto = trace(layer, kind, tuple(golden.outputs), vocabulary)
    errors = certify(serialise(proto, manifest, golden), golden, "float64", "the torch model")
    write_bytes(path, serialise(proto, msgspec.structs.replace(manifest, errors=errors), golden))
    return read_model_file(path).manifest
