"""Reshaping and expanding: where batch and time go, by the row-major order of the elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import EXPANDS, RESHAPES, bind
from streamssm.export.convert.flow import Factor, Flow, Layout, axis_of
from streamssm.export.convert.itemwise import ItemWise, UnstreamableError, item_wise
from streamssm.export.convert.plan import Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.session import Session

SEGMENTS = (
    "reshapes the sequence so that its items are no longer in order",
    "cut frames of a fixed number of items: reshape [B, T, ...] to [B, T // n, n, ...]",
)
INTERPOLATE = (
    "input",
    "size",
    "scale_factor",
    "mode",
    "align_corners",
    "recompute_scale_factor",
    "antialias",
)


@dataclass
class ShapeStep(Step):
    """A reshape or expand to ``sizes``: a number, "B" times a number, or -1 for the axis of time."""

    sizes: tuple[int | tuple[str, int], ...] = ()
    expand: bool = False

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Reshape the first argument."""
        args, _ = self.fitted(session, args, kwargs)
        sizes = [size if isinstance(size, int) else session.batch * size[1] for size in self.sizes]
        return args[0].expand(sizes) if self.expand else args[0].reshape(sizes)


@dataclass
class RepeatStep(Step):
    """Nearest neighbours: each item ``times`` times, or every ``every``-th item."""

    axis: int = 0
    times: int = 1
    every: int = 1

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Repeat along time without looking at sizes that the user computed."""
        args, kwargs = self.fitted(session, args, kwargs)
        x = bind(INTERPOLATE, args, kwargs)["input"]
        if self.every > 1:
            return x[(*[slice(None)] * self.axis, slice(None, None, self.every))]
        wide = [-1] * x.ndim
        wide.insert(self.axis + 1, self.times)
        return x.unsqueeze(self.axis + 1).expand(wide).flatten(self.axis, self.axis + 1)


def reshape(planner: Planner, call: Call) -> Outcome | None:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze.

    Raises:
        UnstreamableError: the order of items is lost.
    """
    if len(call.outs) != 1 or len(call.metas) != 1 or 0 not in call.metas:
        return None
    flow, out = call.flows[0], call.outs[0]
    if out.numel() != call.leaves[0].numel() or out.dtype != call.leaves[0].dtype:
        return None
    layout, rate = _follow(flow, tuple(out.shape), call)
    q, m = rate.denominator, rate.numerator
    if flow.items % q or q > max(flow.items // 2, 1):
        raise UnstreamableError(SEGMENTS)
    planner.need_hop(q, flow.rate)
    step = ShapeStep(call.name, call.path, call.line, sizes=_template(layout, tuple(out.shape)))
    if q == m == 1:  # nothing moves: padding stays padding
        return step, [Flow(layout, flow.rate, flow.items, flow.late, flow.extra, flow.lead, flow.fill)]
    late, extra = planner.aligned([flow], q)
    step.fits = planner.fit_all(call, {0: (late, extra)})
    return step, planner.after_blocks(call, ItemWise(q, m, (layout,)), late, extra)


def _follow(flow: Flow, shape: tuple[int, ...], call: Call) -> tuple[Layout, Fraction]:
    """The layout after a reshape to ``shape``, and by how much the rate changes."""
    factors = _sized(flow, call.sizes.batch)
    layout: list[tuple[Factor, ...]] = []
    rate = Fraction(1)
    for axis, size in enumerate(shape):
        long, wide = call.long.outs[0][axis], call.wide.outs[0][axis]
        taken, factors = _take(factors, size)
        kept: list[Factor] = []
        for symbol, amount in taken:
            if symbol == "T":
                rate *= Fraction(amount, flow.items)
                kept.append("T")
            elif symbol == "B":
                kept.append("B")
            elif kept and kept[-1] == "T":  # [T, n] in one axis: n times as many items
                rate *= amount
            else:
                kept.append(amount)
        follows = ("T" in kept, "B" in kept)
        if follows != (size != long, size != wide) or kept.count("T") > 1 or _time_is_inner(kept):
            raise UnstreamableError(SEGMENTS)
        layout.append(tuple(kept) or (1,))
    if axis_of(tuple(layout), "T") < 0 or axis_of(tuple(layout), "B") < 0:
        raise UnstreamableError(SEGMENTS)
    return tuple(layout), rate


def _time_is_inner(kept: list[Factor]) -> bool:
    """Time behind a constant in one axis: segments side by side."""
    place = kept.index("T") if "T" in kept else 0
    return any(isinstance(factor, int) for factor in kept[:place])


def _sized(flow: Flow, batch: int) -> list[tuple[str, int]]:
    """The factors of all axes in row-major order, with their sizes; those of 1 left out."""
    sizes = {"T": flow.items, "B": batch}
    factors = [factor for axis in flow.layout for factor in axis]
    pairs = [(f, sizes[f]) if isinstance(f, str) else ("", f) for f in factors]
    return [(symbol, size) for symbol, size in pairs if symbol or size != 1]


def _take(factors: list[tuple[str, int]], size: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The first factors, of the given product; one may be cut in two, slower part first."""
    taken, left = [], list(factors)
    while size > 1:
        if not left:
            raise UnstreamableError(SEGMENTS)
        symbol, amount = left.pop(0)
        if size % amount == 0:
            taken.append((symbol, amount))
            size //= amount
        elif amount % size == 0 and symbol != "B":
            taken.append((symbol, size))
            left.insert(0, ("", amount // size))
            size = 1
        else:
            raise UnstreamableError(SEGMENTS)
    return taken, left


def _template(layout: Layout, shape: tuple[int, ...]) -> tuple[int | tuple[str, int], ...]:
    sizes: list[int | tuple[str, int]] = []
    for factors, size in zip(layout, shape, strict=True):
        if "T" in factors:
            sizes.append(-1)
        elif "B" in factors:
            sizes.append(("B", math.prod(f for f in factors if isinstance(f, int))))
        else:
            sizes.append(size)
    return tuple(sizes)


def expand(planner: Planner, call: Call) -> Outcome | None:
    """expand to sizes of which the one of time is that of the tensor."""
    if list(call.metas) != [0]:
        return None
    found = item_wise(call)
    (layout,) = found.layouts
    flow = call.flows[0]
    sizes = tuple(-1 if "B" in f or "T" in f else s for f, s in zip(layout, call.outs[0].shape, strict=True))
    step = ShapeStep(call.name, call.path, call.line, sizes=sizes, expand=True)
    return step, [Flow(layout, flow.rate, flow.items, flow.late, flow.extra, flow.lead, flow.fill)]


def interpolate(planner: Planner, call: Call) -> Outcome | None:
    """Nearest neighbours by a whole factor along time.

    Raises:
        UnstreamableError: any other interpolation of time.
    """
    given = bind(INTERPOLATE, call.args, call.kwargs)
    if list(call.metas) != [0]:
        return None
    flow, x, out = call.flows[0], call.leaves[0], call.outs[0]
    found = item_wise(call)
    others = [a for a in range(x.ndim) if a != flow.time and x.shape[a] != out.shape[a]]
    if others or not str(given.get("mode", "nearest")).startswith("nearest") or 1 not in (found.q, found.m):
        return None if found.q == found.m else _refuse()
    late, extra = planner.aligned([flow], found.q)
    fits = planner.fit_all(call, {0: (late, extra)})
    step = RepeatStep(call.name, call.path, call.line, fits, axis=flow.time, times=found.m, every=found.q)
    return step, planner.after_blocks(call, found, late, extra)


def _refuse() -> None:
    raise UnstreamableError(
        (
            "interpolates time and another axis at once, or by a factor that is not whole",
            "interpolate one axis after the other, time by a whole factor with mode='nearest'",
        )
    )


RULES = {
    **dict.fromkeys(RESHAPES, reshape),
    **dict.fromkeys(EXPANDS, expand),
    "interpolate": interpolate,
}
