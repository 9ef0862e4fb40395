"""How close two results must be: the one table, by the dtype that was computed in.

A result is within tolerance when its largest absolute difference from the reference is at
most ``atol + rtol * max|reference|``. The scale is the largest magnitude of the whole tensor:
an output near zero that is the difference of large terms carries the rounding of those terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamssm.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the largest difference, relative to the largest magnitude, and absolute."""

    rtol: float
    atol: float


# Measured over all layers, chunked against whole and against float64, 24 to 4000 items:
#   float64   against the numpy definitions: 6e-14
#   float32   single layers 5e-7 (1.4e-6 where statistics run over 1000 items); models of five
#             mixers with a front end 3.2e-6
#   float16   2.7e-3, bfloat16 3.1e-2, both for models of five mixers against float64 with the
#             same rounded weights
# The bounds leave a factor of 2 to 15 for deeper models and other orders of summation.
#
# int8 and int4 are files with such weights against exact products with the same rounded weights:
# what differs is the rounding of activations to 8 bits, by whichever kernel runs, so both rows are
# one. A sum in another order moves an activation across a rounding threshold now and then, which
# the layers after it amplify to the same size. Measured: vad 4.8e-2; models of random weights, 3
# mixers 2.7e-2, 24 mixers 6.2e-2. What the rounding of the weights costs is no matter of tolerance:
# it is measured, and written into the file, when they are rounded.
TABLE: dict[str, Tolerance] = {
    "float64": Tolerance(rtol=1e-12, atol=1e-13),
    "float32": Tolerance(rtol=2e-5, atol=1e-6),
    "float16": Tolerance(rtol=1e-2, atol=1e-3),
    "bfloat16": Tolerance(rtol=6e-2, atol=1e-2),
    "int8": Tolerance(rtol=1.5e-1, atol=1e-2),
    "int4": Tolerance(rtol=1.5e-1, atol=1e-2),
}


def tolerance(dtype: str) -> Tolerance:
    """The bounds for a dtype by name.

    Raises:
        UsageError: no bounds are set for it.
    """
    if dtype not in TABLE:
        raise UsageError(f"no tolerance is set for dtype {dtype!r}; there are {', '.join(TABLE)}")
    return TABLE[dtype]


#: A deep model may amplify rounding beyond the table: torch in float32 is then as far from float64 as
#: anything in float32 is. So a model's own rounding, measured when its file is made, widens the bound
#: of that file by this factor, up to a largest relative error.
_ROUNDINGS = 4
MOST_ROUNDING = 1e-2

#: elements that are compared at a time
_SLICE = 1 << 17


def error(value: Array, reference: Array) -> tuple[float, float]:
    """Largest absolute difference, and the same over the largest magnitude of the reference.

    Equal infinities and NaNs in the same place count as equal; any other one is an infinite
    error. Empty arrays have no error.

    Raises:
        UsageError: the shapes differ.
    """
    value, reference = np.asarray(value), np.asarray(reference)
    if value.shape != reference.shape:
        raise UsageError(f"shapes {value.shape} and {reference.shape} cannot be compared")
    if not value.size:
        return 0.0, 0.0
    largest = scale = 0.0
    a, b = value.reshape(-1), reference.reshape(-1)
    for start in range(0, a.size, _SLICE):
        part = slice(start, start + _SLICE)
        difference, magnitude = _error(a[part].astype(np.float64), b[part].astype(np.float64))
        largest, scale = max(largest, difference), max(scale, magnitude)
    return largest, largest / scale if scale else (np.inf if largest else 0.0)


def _error(a: Array, b: Array) -> tuple[float, float]:
    """Largest difference, and the largest finite magnitude of the reference ``b``."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    largest = float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())
    return largest, float(np.abs(b[np.isfinite(b)]).max(initial=0.0))


def within(value: Array, reference: Array, dtype: str = "float32", rounding: float = 0.0) -> bool:
    """Whether the value is as close to the reference as the table demands, or as the relative error
    ``rounding`` that the model itself is known to make in this dtype.

    Raises:
        UsageError: the shapes differ, or no bounds are set for the dtype.
    """
    bounds = tolerance(dtype)
    largest, relative = error(value, reference)
    scale = largest / relative if 0.0 < relative < np.inf else 0.0
    return largest <= bounds.atol + bounds.rtol * scale or excused(relative, rounding)


def excused(relative: float, rounding: float) -> bool:
    """Whether a relative error is no more than a model's own rounding explains."""
    return relative <= min(_ROUNDINGS * rounding, MOST_ROUNDING)
