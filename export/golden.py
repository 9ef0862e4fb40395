"""Golden vectors and the comparison of an exported file with its torch model in float64."""

from __future__ import annotations

import base64
import copy
from dataclasses import dataclass

import numpy as np
import torch

import streamssm
from streamssm import golden, tolerance
from streamssm.draw import default_items, draw_input
from streamssm.errors import ExportError
from streamssm.export.graph import named_outputs
from streamssm.export.layers.base import StreamingLayer
from streamssm.manifest import CertifiedError, Input, Manifest

STORED_HOPS = 100


@dataclass(frozen=True)
class Golden:
    """Input items [T, *item_shape] and what the torch model makes of them in float64."""

    x: np.ndarray
    outputs: dict[str, np.ndarray]

    @classmethod
    def of(cls, layer: StreamingLayer, manifest: Manifest, example: np.ndarray | None) -> Golden:
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
        return cls(x, {key: value[0].numpy() for key, value in named_outputs(y, names).items()})

    def encode(self, manifest: Manifest) -> str:
        """The first hundred hops as base64, for the file's metadata."""
        kept = self.x[: STORED_HOPS * manifest.input.hop]
        frames = {output.name: int(len(kept) * output.per_item) for output in manifest.outputs}
        outputs = {name: y[: frames[name]] for name, y in self.outputs.items()}
        return base64.b64encode(golden.encode(kept, outputs)).decode()


def _fitting(example: np.ndarray, spec: Input) -> np.ndarray:
    x = np.ascontiguousarray(example)
    if x.ndim != 1 + len(spec.shape) or x.shape[1:] != spec.shape or len(x) < spec.hop:
        raise ExportError(f"example has shape {x.shape}; give [T, *{list(spec.shape)}] with T >= {spec.hop}")
    outside = spec.kind == "tokens" and (x.min() < 0 or x.max() >= (spec.vocabulary or 0))
    if outside or not np.isfinite(x).all():
        raise ExportError("example holds NaN, infinity or tokens outside the vocabulary")
    return x.astype(spec.dtype)


def certify(model: streamssm.Model, wanted: Golden) -> tuple[CertifiedError, ...]:
    """Compare an opened file with the float64 outputs: whole, split, hop by hop.

    Raises:
        ExportError: an output differs by more than the tolerance table allows.
    """
    hop, items = model.manifest.input.hop, len(wanted.x)
    blocks = {
        "whole against float64": items,
        "blocks of 5 hops against float64": 5 * hop,
        "single hops against float64": hop,
    }
    return tuple(_compare(label, model, wanted, block) for label, block in blocks.items())


def _compare(label: str, model: streamssm.Model, wanted: Golden, block: int) -> CertifiedError:
    manifest = model.manifest
    found = model.scan(wanted.x, block=block)
    found = found if isinstance(found, dict) else {manifest.outputs[0].name: found}
    worst_abs = worst_rel = 0.0
    for output in manifest.outputs:
        # the runtime drops the warm-up of a look-ahead, and its last items come from the flush
        reference = wanted.outputs[output.name][int(manifest.lookahead * output.per_item) :]
        y = found[output.name][: len(reference)]
        max_abs, max_rel = tolerance.error(y, reference)
        if not tolerance.within(y, reference, "float32"):
            raise ExportError(
                f"output {output.name!r} of the exported file differs from the torch model by {max_abs:.2g} "
                f"({max_rel:.2g} relative), {label}; nothing was written"
            )
        worst_abs, worst_rel = max(worst_abs, max_abs), max(worst_rel, max_rel)
    return CertifiedError(label, worst_abs, worst_rel, len(wanted.x))
