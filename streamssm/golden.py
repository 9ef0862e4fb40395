"""Golden vectors: a sample of input and output that travels in the file's metadata.

Safetensors bytes: ``x`` [T, *item_shape] and, for each output, ``y.<name>`` [F, *shape], what
the graph makes of the whole of x in one call from a fresh state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.errors import ModelFileError
from streamssm.manifest import Manifest

Array = npt.NDArray[Any]

#: wider output items are stored as so many of their columns
COLUMNS = 256


def sampled_columns(y: Array) -> Array:
    """The columns of y [F, ..., C] that are stored: all, or 256 evenly spread ones."""
    columns = y.shape[-1] if y.ndim > 1 else 1
    if columns <= COLUMNS:
        return y
    return y[..., np.linspace(0, columns - 1, COLUMNS).round().astype(int)]


def encode(x: Array, outputs: Mapping[str, Array]) -> bytes:
    """The sample as bytes; outputs are cut to :func:`sampled_columns`."""
    from safetensors.numpy import save

    stored = {f"y.{name}": sampled_columns(y).astype(np.float32) for name, y in outputs.items()}
    # safetensors would write the memory of an array that is not contiguous in the wrong order
    return save({name: np.ascontiguousarray(value) for name, value in {"x": x, **stored}.items()})


def decode(data: bytes, manifest: Manifest) -> tuple[Array, dict[str, Array]]:
    """``x`` and the outputs by name.

    Raises:
        ModelFileError: the sample cannot be read or lacks an output.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        return tensors["x"], {output.name: tensors[f"y.{output.name}"] for output in manifest.outputs}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"the golden sample cannot be read ({error!r}); export again") from error
