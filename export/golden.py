"""What a torch model makes of a sample of input: golden vectors, and what its file is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamssm import tolerance
from streamssm.draw import default_items, draw_input
from streamssm.errors import ExportError
from streamssm.export.certify import Golden, affordable
from streamssm.export.graph import named_outputs
from streamssm.export.layers.base import StreamingLayer
from streamssm.export.memory import give_back
from streamssm.export.parameters import SMALL
from streamssm.manifest import ROUNDING, CertifiedError, Input, Manifest

#: outputs of more bytes are kept in float32
_LARGE = 1 << 24
#: hops at a time of a large model
_PIECE = 32


def sample_of(manifest: Manifest, example: np.ndarray | None) -> np.ndarray:
    """``example``, or random items, enough of them to go around any window twice, but fewer of a
    model so large that this would take minutes.

    Raises:
        ExportError: the example is shorter than a hop, or its items do not fit the model.
    """
    spec = manifest.input
    if example is None:
        items = affordable(default_items(manifest), spec.hop, manifest.parameters)
        example = draw_input(manifest, items, np.random.default_rng(0))
    x = _fitting(example, spec)
    return x[: x.shape[0] // spec.hop * spec.hop]


def golden_of(
    layer: StreamingLayer, manifest: Manifest, x: np.ndarray, dtype: torch.dtype = torch.float64
) -> Golden:
    """What a layer that computes in ``dtype`` makes of x [T, *item_shape]: in one call, or, of a large
    model, whose recurrences need a state for each item in memory, in a few with the state carried on.
    """

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    state = {name: cast(value) for name, value in layer.init_state(1).items()}
    step = len(x) if manifest.parameters <= SMALL else _PIECE * manifest.input.hop
    parts = []
    for start in range(0, len(x), step):
        with torch.no_grad():
            y, state = layer(cast(torch.from_numpy(x[start : start + step])[None]), state)
        parts.append(_arrays(y, manifest))
    return Golden(x, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


class Rounding:
    """The error that a model itself makes when it computes in float32; found when it is asked for.

    ``single`` makes the model that computes in float32.
    """

    def __init__(self, single: Callable[[], StreamingLayer], manifest: Manifest, golden: Golden) -> None:
        self._single, self._manifest, self._golden = single, manifest, golden
        self.error: CertifiedError | None = None

    def __call__(self) -> float:
        """Relative to the largest magnitude of an output, the worst of them."""
        if self.error is None:
            give_back()
            x = self._golden.x
            found = golden_of(self._single(), self._manifest, x, torch.float32).outputs
            worst = [tolerance.error(y, self._golden.outputs[name]) for name, y in found.items()]
            self.error = CertifiedError(ROUNDING, *np.max(worst, axis=0).tolist(), len(x))
        return self.error.max_rel


def original_of(function: Callable[[Any], Any], manifest: Manifest, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the module that a layer was made from makes of x [T, *item_shape].

    Raises:
        ExportError: it gives other outputs or other shapes than the layer.
    """
    with torch.no_grad():
        found = _arrays(function(torch.from_numpy(x)[None]), manifest)
    for output in manifest.outputs:
        wanted = (int(len(x) * output.per_item), *output.shape)
        if found[output.name].shape != wanted:
            raise ExportError(
                f"output {output.name!r} of the original has shape {list(found[output.name].shape)}, "
                f"that of the converted model {list(wanted)}"
            )
    return found


def _arrays(y: Any, manifest: Manifest) -> dict[str, np.ndarray]:
    """Outputs by name, without the batch; large ones in float32."""
    named = named_outputs(y, tuple(output.name for output in manifest.outputs))
    arrays = {name: value[0].detach().cpu() for name, value in named.items()}
    return {
        name: (value.float() if value.numel() * value.itemsize > _LARGE else value).numpy()
        for name, value in arrays.items()
    }


def _fitting(example: np.ndarray, spec: Input) -> np.ndarray:
    x = np.ascontiguousarray(example)
    if x.ndim != 1 + len(spec.shape) or x.shape[1:] != spec.shape or len(x) < spec.hop:
        wanted = ", ".join(["T", *map(str, spec.shape)])
        raise ExportError(f"example has shape {list(x.shape)}; give [{wanted}] with T >= {spec.hop}")
    outside = spec.kind == "tokens" and (x.min() < 0 or x.max() >= (spec.vocabulary or 0))
    if outside or not np.isfinite(x).all():
        raise ExportError("example holds NaN, infinity or tokens outside the vocabulary")
    return x.astype(spec.dtype)
