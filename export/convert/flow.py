"""How a tensor carries the stream: which axes are batch and time, at what rate, how late.

A tensor of the user's forward is a sequence z[0], z[1], ... along time. When a stream runs, a
call of T input items beginning at item p holds

    z[p rate - late], ..., z[p rate - late + T rate + extra - 1]

so ``late`` is a delay in the tensor's own items, and the ``extra`` last items come again in the
next call. Items below ``lead`` are padding of the value ``fill``; as long as nothing needs them
they are not there at all, which is what a negative ``late`` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from streamssm.export.convert.refusal import Refusal

#: a symbol for batch or time, or a constant size
Factor = str | int
#: for each axis the factors of its size, slowest first; [B, T, C] is (("B",), ("T",), (C,))
Layout = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True)
class Flow:
    """See the module docstring; ``items`` is the length in the run that is analysed."""

    layout: Layout
    rate: Fraction
    items: int
    late: int = 0
    extra: int = 0
    lead: int = 0
    fill: float = 0.0

    @property
    def time(self) -> int:
        """The axis of time."""
        return axis_of(self.layout, "T")

    @property
    def batch(self) -> int:
        """The axis of the batch."""
        return axis_of(self.layout, "B")

    @property
    def plain(self) -> bool:
        """Whether time has an axis of its own."""
        return self.layout[self.time] == ("T",)


@dataclass(frozen=True)
class Poison:
    """A value that depends on the stream in a way that cannot stream: refused if an output needs it.

    ``flow`` is what it would be if it could: to go on looking for other reasons.
    """

    reasons: frozenset[Refusal]
    flow: Flow | None = None


Meta = Flow | Poison


def axis_of(layout: Layout, symbol: str) -> int:
    """The axis that has ``symbol`` among its factors, -1 if none has."""
    return next((axis for axis, factors in enumerate(layout) if symbol in factors), -1)


def shape_of(layout: Layout, batch: int, items: int) -> tuple[int, ...]:
    """The sizes of a layout."""
    sizes = {"B": batch, "T": items}
    return tuple(math.prod(sizes.get(f, f) if isinstance(f, str) else f for f in axis) for axis in layout)


def take(x: Tensor, layout: Layout, symbol: str, index: Tensor, size: int) -> Tensor:
    """Select along batch or time, wherever in x [*layout] it is; ``size`` is its length."""
    axis = axis_of(layout, symbol)
    factors = layout[axis]
    if len(factors) == 1:
        return x.index_select(axis, index)
    place = factors.index(symbol)
    before = x.shape[axis] // size
    inner = math.prod(f for f in factors[place + 1 :] if isinstance(f, int))
    if any(isinstance(f, str) for f in factors[place + 1 :]):  # the other symbol is the faster one
        outer = math.prod(f for f in factors[:place] if isinstance(f, int))
        inner = before // outer
    split = x.unflatten(axis, (before // inner, size, inner))
    return split.index_select(axis + 1, index).flatten(axis, axis + 2)


def to_rows(x: Tensor, layout: Layout) -> Tensor:
    """x [*layout] -> [B, T, the other axes], an axis (B, n) cut in two; time has its own axis."""
    batch, time = axis_of(layout, "B"), axis_of(layout, "T")
    if len(layout[batch]) == 1:
        return x.movedim((batch, time), (0, 1))
    inner = math.prod(layout[batch][1:])
    x = x.unflatten(batch, (x.shape[batch] // inner, inner))
    return x.movedim((batch, time + (time > batch)), (0, 1))


def from_rows(rows: Tensor, layout: Layout) -> Tensor:
    """The inverse of :func:`to_rows`."""
    batch, time = axis_of(layout, "B"), axis_of(layout, "T")
    if len(layout[batch]) == 1:
        return rows.movedim((0, 1), (batch, time))
    return rows.movedim((0, 1), (batch, time + (time > batch))).flatten(batch, batch + 1)


def row_shape(x: Tensor, layout: Layout) -> tuple[int, ...]:
    """The shape of one item of one row, as :func:`to_rows` gives it."""
    return tuple(to_rows(x, layout).shape[2:])


def rows_possible(layout: Layout) -> bool:
    """Whether :func:`to_rows` can be applied: time alone on an axis, the batch first on its own."""
    batch, time = axis_of(layout, "B"), axis_of(layout, "T")
    return batch >= 0 and time >= 0 and layout[time] == ("T",) and layout[batch][0] == "B"


def count_mask(first: Tensor, items: int | torch.SymInt, below: int) -> Tensor:
    """Which of the items first, first + 1, ... have an index under ``below``; first [B] -> [B, items]."""
    index = first[:, None] + torch.arange(items, device=first.device)
    return index < below
