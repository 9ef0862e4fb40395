"""Push results by output name, whether a model has one output or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.manifest import Manifest

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]


def by_name(manifest: Manifest, result: Array | Outputs) -> Outputs:
    """A push result as a mapping, also for a model with a single output."""
    return {manifest.outputs[0].name: result} if isinstance(result, np.ndarray) else result


def joined(manifest: Manifest, results: Iterable[Array | Outputs], axis: int = 0) -> Outputs:
    """Push results one after the other, along the time axis."""
    parts = [by_name(manifest, result) for result in results]
    return {o.name: np.concatenate([part[o.name] for part in parts], axis) for o in manifest.outputs}
