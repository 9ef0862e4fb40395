"""Golden vectors of a torch model: what it makes, in float64, of a sample of input."""

from __future__ import annotations

import copy

import numpy as np
import torch

from streamssm.draw import default_items, draw_input
from streamssm.errors import ExportError
from streamssm.export.certify import Golden
from streamssm.export.graph import named_outputs
from streamssm.export.layers.base import StreamingLayer
from streamssm.manifest import Input, Manifest


def golden_of(layer: StreamingLayer, manifest: Manifest, example: np.ndarray | None) -> Golden:
    """Run ``example`` through the model in float64; by default random items, enough of them
    to go around any window twice.

    Raises:
        ExportError: the example is shorter than a hop, or its items do not fit the model.
    """
    spec, names = manifest.input, tuple(output.name for output in manifest.outputs)
    if example is None:
        example = draw_input(manifest, default_items(manifest), np.random.default_rng(0))
    x = _fitting(example, spec)
    x = x[: x.shape[0] // spec.hop * spec.hop]
    double = copy.deepcopy(layer).double()
    state = {k: v.double() if v.is_floating_point() else v for k, v in double.init_state(1).items()}
    items = torch.from_numpy(x)[None]
    with torch.no_grad():
        y, _ = double(items.double() if items.is_floating_point() else items, state)
    return Golden(x, {key: value[0].numpy() for key, value in named_outputs(y, names).items()})


def _fitting(example: np.ndarray, spec: Input) -> np.ndarray:
    x = np.ascontiguousarray(example)
    if x.ndim != 1 + len(spec.shape) or x.shape[1:] != spec.shape or len(x) < spec.hop:
        raise ExportError(f"example has shape {x.shape}; give [T, *{list(spec.shape)}] with T >= {spec.hop}")
    outside = spec.kind == "tokens" and (x.min() < 0 or x.max() >= (spec.vocabulary or 0))
    if outside or not np.isfinite(x).all():
        raise ExportError("example holds NaN, infinity or tokens outside the vocabulary")
    return x.astype(spec.dtype)
