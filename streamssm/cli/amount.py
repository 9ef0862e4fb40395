"""Amounts of input on the command line: a number of items, or a time such as 7ms or 1.5s."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import click

from streamssm.errors import UsageError

#: a number and its unit: "" for items, "ms" or "s"
Amount = tuple[Fraction, str]

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|)")


class PositiveNumber(click.FloatRange):
    """A finite number above 0; click's own range lets NaN and infinity pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def parse_amount(context: click.Context, parameter: click.Parameter, value: str | None) -> Amount | None:
    """An option callback; a number without a unit must be whole."""
    if value is None:
        return None
    match = _AMOUNT.fullmatch(value.strip())
    if match is None or (not match[2] and not match[1].isdigit()) or not Fraction(match[1]):
        raise click.BadParameter(f"{value!r} is not an amount; write items (160) or a time (7ms, 1s).")
    return Fraction(match[1]), match[2]


def parse_size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """An option callback: a number of bytes, such as 512, 64k, 10M or 1G."""
    match = re.fullmatch(r"(\d+)([kMG]?)", value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write bytes, or 64k, 10M, 1G.")
    return int(match[1]) << {"": 0, "k": 10, "M": 20, "G": 30}[match[2]]


def to_items(amount: Amount, rate: Fraction | None, option: str) -> int:
    """An amount as a number of items, at least one.

    Raises:
        UsageError: a time for a model without a clock, or less than one item.
    """
    number, unit = amount
    if not unit:
        return int(number)
    shown = f"{option} {float(number):g}{unit}"
    if rate is None:
        raise UsageError(f"{shown}: the model has no clock; give a number of items")
    items = int((number / 1000 if unit == "ms" else number) * rate + Fraction(1, 2))
    if not items:
        raise UsageError(f"{shown} is less than one item at {float(rate):g} items a second; give more")
    return items


def length(items: int | None, seconds: float | None, rate: Fraction | None) -> int | None:
    """The options ``--items`` and ``--seconds``, of which one may be given, as items.

    Raises:
        UsageError: both are given, or seconds do not fit the model.
    """
    if items is not None and seconds is not None:
        raise UsageError(f"--items {items} and --seconds {seconds:g} both say how long; give one")
    if seconds is None:
        return items
    return to_items((Fraction(repr(seconds)), "s"), rate, "--seconds")
