"""What quantising a file cost: of each layer by itself, and of all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm import tolerance

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Effect:
    """How far the outputs are from those of the float32 file; the worst of several outputs.

    ``max_abs`` is the largest difference, ``max_rel`` the same over the largest magnitude,
    ``rms`` the root mean square of the difference over that of the output; ``metric`` is the task's
    own measure, where there are labels.
    """

    max_abs: float
    max_rel: float
    rms: float
    metric: float | None = None


@dataclass(frozen=True)
class LayerReport:
    """One quantised layer. ``weight_error`` is the norm of the change over the norm of the weights;
    ``effect`` is that of quantising this layer alone, None where it was not measured."""

    name: str
    K: int
    N: int
    weight_error: float
    effect: Effect | None


@dataclass(frozen=True)
class Report:
    """The result of :func:`streamssm.export.quantize`; ``kept`` says why a linear layer is float32.

    ``bytes`` are the file's sizes before and after, ``items`` the input items that errors were
    measured on, ``baseline`` the metric of the float32 file.
    """

    source: str
    target: str
    source_sha256: str
    sha256: str
    weights: str
    block_size: int
    bytes: tuple[int, int]
    items: int
    metric: str | None
    baseline: float | None
    weight_error: float
    total: Effect
    layers: tuple[LayerReport, ...]
    kept: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return dataclasses.asdict(self)


def effect(found: Outputs, reference: Outputs, metric: float | None) -> Effect:
    """Compare two sets of outputs."""
    largest = [tolerance.error(found[name], value) for name, value in reference.items()]
    return Effect(
        max(absolute for absolute, _ in largest),
        max(relative for _, relative in largest),
        max(_rms(found[name], value) for name, value in reference.items()),
        metric,
    )


def _rms(found: np.ndarray, reference: np.ndarray) -> float:
    return relative_norm(found.astype(np.float64) - reference, reference)


def relative_norm(difference: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Norm of the difference over that of the reference; zero where both are."""
    above, below = (float(np.linalg.norm(np.ravel(array))) for array in (difference, reference))
    return above / below if below else (0.0 if not above else float("inf"))
