"""Item counts to seconds and back, exactly: times depend on counts alone, never on the wall clock.

A rate is the decimal number that the manifest shows (0.1 Hz is one item in ten seconds), held as
a fraction, so that a time is rounded once, to microseconds, and is the same on every machine.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamssm.manifest import Manifest

MICROSECONDS = 1_000_000


def exact(value: float | Fraction) -> Fraction:
    """The decimal number that ``value`` prints as, as a fraction."""
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))


def input_rate(manifest: Manifest) -> Fraction | None:
    """Input items a second, or None without a clock."""
    return None if manifest.input.rate is None else exact(manifest.input.rate)


def seconds(items: int, rate: Fraction) -> float:
    """The time at which item number ``items`` starts, in seconds rounded to microseconds."""
    scaled = items * MICROSECONDS * rate.denominator
    return (2 * scaled + rate.numerator) // (2 * rate.numerator) / MICROSECONDS


def items_at_least(duration: float, rate: Fraction) -> int:
    """The least number of items, one or more, that lasts at least ``duration`` seconds."""
    return max(1, -int(-exact(duration) * rate // 1))
