"""Golden vectors and the comparison of an exported file with its torch model in float64."""

from __future__ import annotations

import base64
import copy
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch

import streamssm
from streamssm import tolerance
from streamssm.errors import ExportError
from streamssm.export.graph import named_outputs
from streamssm.export.layers.base import StreamingLayer
from streamssm.manifest import CertifiedError, Input

GOLDEN_HOPS = 48
GOLDEN_COLUMNS = 256


@dataclass(frozen=True)
class Golden:
    """Input items [T, *item_shape] and what the torch model makes of them in float64."""

    x: np.ndarray
    outputs: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, layer: StreamingLayer, spec: Input, names: tuple[str, ...], example: np.ndarray | None
    ) -> Golden:
        """Run ``example`` (random items by default) through the model in float64.

        Raises:
            ExportError: the example is shorter than a hop, or its items do not fit the model.
        """
        x = _example(spec) if example is None else _fitting(example, spec)
        x = x[: x.shape[0] // spec.hop * spec.hop]
        double = copy.deepcopy(layer).double()
        state = {k: v.double() if v.is_floating_point() else v for k, v in double.init_state(1).items()}
        items = torch.from_numpy(x)[None]
        with torch.no_grad():
            y, _ = double(items.double() if items.is_floating_point() else items, state)
        return cls(x, {key: value[0].numpy() for key, value in named_outputs(y, names).items()})

    def encode(self) -> str:
        """The vectors as base64 of safetensors: ``x`` and one ``y.<output>`` each."""
        tensors = {"x": np.ascontiguousarray(self.x)}
        for name, y in self.outputs.items():
            tensors[f"y.{name}"] = np.ascontiguousarray(sampled_columns(y), dtype=np.float32)
        return base64.b64encode(safetensors.numpy.save(tensors)).decode()


def sampled_columns(y: np.ndarray) -> np.ndarray:
    """The columns of y [..., C] that golden vectors keep: at most 256, evenly spread."""
    columns = y.shape[-1] if y.ndim > 1 else 1
    if columns <= GOLDEN_COLUMNS:
        return y
    return y[..., np.linspace(0, columns - 1, GOLDEN_COLUMNS).round().astype(int)]


def _fitting(example: np.ndarray, spec: Input) -> np.ndarray:
    x = np.ascontiguousarray(example)
    if x.ndim != 1 + len(spec.shape) or x.shape[1:] != spec.shape or len(x) < spec.hop:
        raise ExportError(f"example has shape {x.shape}; give [T, *{list(spec.shape)}] with T >= {spec.hop}")
    outside = spec.kind == "tokens" and (x.min() < 0 or x.max() >= (spec.vocabulary or 0))
    if outside or not np.isfinite(x).all():
        raise ExportError("example holds NaN, infinity or tokens outside the vocabulary")
    return x.astype(spec.dtype)


def _example(spec: Input) -> np.ndarray:
    generator = np.random.default_rng(0)
    shape = (GOLDEN_HOPS * spec.hop, *spec.shape)
    if spec.kind == "tokens":
        return generator.integers(spec.vocabulary or 2, size=shape)
    scale = 0.1 if spec.kind == "samples" else 1.0
    return (scale * generator.standard_normal(shape)).astype(spec.dtype)


def certify(model: streamssm.Model, golden: Golden) -> tuple[CertifiedError, ...]:
    """Compare an opened file with the float64 outputs: whole, split, hop by hop.

    Raises:
        ExportError: an output differs by more than the tolerance table allows.
    """
    hop, items = model.manifest.input.hop, len(golden.x)
    blocks = {
        "whole against float64": items,
        "blocks of 5 hops against float64": 5 * hop,
        "single hops against float64": hop,
    }
    return tuple(_compare(label, model, golden, block) for label, block in blocks.items())


def _compare(label: str, model: streamssm.Model, golden: Golden, block: int) -> CertifiedError:
    manifest = model.manifest
    found = model.scan(golden.x, block=block)
    found = found if isinstance(found, dict) else {manifest.outputs[0].name: found}
    worst_abs = worst_rel = 0.0
    for output in manifest.outputs:
        # the runtime drops the warm-up of a look-ahead, and its last items come from the flush
        reference = golden.outputs[output.name][int(manifest.lookahead * output.per_item) :]
        y = found[output.name][: len(reference)]
        max_abs, max_rel = tolerance.error(y, reference)
        if not tolerance.within(y, reference, "float32"):
            raise ExportError(
                f"output {output.name!r} of the exported file differs from the torch model by {max_abs:.2g} "
                f"({max_rel:.2g} relative), {label}; nothing was written"
            )
        worst_abs, worst_rel = max(worst_abs, max_abs), max(worst_rel, max_rel)
    return CertifiedError(label, worst_abs, worst_rel, len(golden.x))
