"""Slices along time. Cutting at the start moves the index, cutting at the end does nothing, a step
is a stride: no item is stored for any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind, rebuilt
from streamssm.export.convert.flow import Flow
from streamssm.export.convert.itemwise import UnstreamableError
from streamssm.export.convert.plan import Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.rules.padding import layout_of, padded
from streamssm.export.convert.rules.windows import Window, windowed
from streamssm.export.convert.session import Session

ONE = (
    "picks single items out of the sequence",
    "give an output at every item (its last one is that of the whole so far), and use nn.GRU or nn.LSTM, or "
    "a registered twin, instead of a loop over time",
)
ENDS = (
    "takes a number of items from the start or the end of the sequence",
    "cut all but a fixed number, as in x[:, 3:] or x[:, :-3]; a stream has no last items until it ends",
)
PIECES = (
    "cuts the sequence into pieces",
    "process all items alike, or cut into frames of fixed length: reshape or unfold",
)


@dataclass
class IndexStep(Step):
    """The user's index with the slice along time replaced."""

    place: int = 0
    stride: int = 1
    time: int = 0

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Index the other axes; along time every ``stride``-th item."""
        args, kwargs = self.fitted(session, args, kwargs)
        x, index = args[0], list(_expanded(args[0], args[1]))
        if all(item == slice(None) for i, item in enumerate(index) if i != self.place):
            return x.clone() if self.stride == 1 else _every(x, self.time, self.stride)
        index[self.place] = slice(None, None, self.stride if self.stride > 1 else None)
        return func(x, tuple(index))


@dataclass
class EveryStep(Step):
    """All items, or every ``stride``-th, of the first argument."""

    axis: int = 0
    stride: int = 1

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Slice."""
        args, _ = self.fitted(session, args, kwargs)
        return args[0].clone() if self.stride == 1 else _every(args[0], self.axis, self.stride)


def _every(x: Tensor, axis: int, stride: int) -> Tensor:
    return x[(*[slice(None)] * axis, slice(None, None, stride))]


def _expanded(x: Tensor, index: Any) -> tuple:
    """An index with a term for every axis of x, the ellipsis written out."""
    terms = list(index) if isinstance(index, tuple) else [index]
    used = sum(_axes_of(term) for term in terms)
    fill = [slice(None)] * (x.ndim - used)
    for place, term in enumerate(terms):
        if term is Ellipsis:
            return (*terms[:place], *fill, *terms[place + 1 :])
    return (*terms, *fill)


def _axes_of(term: Any) -> int:
    if term is None or term is Ellipsis or isinstance(term, bool):
        return 0
    if isinstance(term, Tensor) and term.dtype == torch.bool:
        return term.ndim
    return 1


def getitem(planner: Planner, call: Call) -> Outcome | None:
    """x[...] with a slice along time.

    Raises:
        UnstreamableError: it picks items that a stream does not have.
    """
    x, index = call.args[0], call.args[1]
    leaf = call.leaf_of(x)
    if leaf is None or len(call.metas) > 1:
        return None
    flow = call.flows[leaf]
    terms = _expanded(x, index)
    axis = place = -1
    for place, term in enumerate(terms):  # noqa: B007  the last one is the term of time
        axis += _axes_of(term)
        if axis >= flow.time:
            break
    term = terms[place]
    if axis != flow.time or not isinstance(term, slice):
        raise UnstreamableError(ONE)
    if term == slice(None):
        return None
    long_args = _args_of(call, call.long.leaves)
    long_term = _expanded_shape(long_args[1], x.ndim)[place]
    long_items = call.long.leaves[leaf][flow.time]
    start, stride = _cut(term, x.shape[flow.time], long_term, long_items)
    if not flow.plain:
        raise UnstreamableError(ENDS)
    step, after = _sliced(planner, call, leaf, start, stride)
    step = IndexStep(call.name, call.path, call.line, step, place=place, stride=stride, time=flow.time)
    layout = layout_of(call)
    time = next(a for a, factors in enumerate(layout) if "T" in factors)
    return step, [dataclasses.replace(after, layout=layout, items=call.outs[0].shape[time])]


def _args_of(call: Call, leaves: tuple) -> tuple:
    """The positional arguments of another run, with shapes for followed tensors."""
    return rebuilt([_Opaque(leaf) if isinstance(leaf, tuple) else leaf for leaf in leaves], call.spec)[0]


@dataclass(frozen=True)
class _Opaque:
    shape: tuple


def _expanded_shape(index: Any, ndim: int) -> tuple:
    return _expanded(torch.empty((0,) * ndim), index)


def _cut(term: slice, items: int, long_term: slice, long_items: int) -> tuple[int, int]:
    """Where a slice starts, and its step.

    Raises:
        UnstreamableError: it takes a fixed number of items from either end.
    """
    start, stop, stride = term.indices(items)
    long_start, long_stop, _ = long_term.indices(long_items)
    if start != long_start or items - stop != long_items - long_stop:
        raise UnstreamableError(ENDS)
    return start, stride


def _sliced(planner: Planner, call: Call, leaf: int, start: int, stride: int) -> tuple[dict, Flow]:
    flow = padded(call.flows[leaf], -start)
    if stride == 1:
        return {}, flow
    flow, goal, after = windowed(planner, flow, Window(1, stride))
    fit = planner.fit(call, leaf, flow, *goal)
    return ({} if fit is None else {leaf: fit}), after


def narrow(planner: Planner, call: Call) -> Outcome | None:
    """x.narrow(axis, start, length) along time.

    Raises:
        UnstreamableError: as :func:`getitem`.
    """
    names = ("input", "dim", "start", "length")
    given = bind(names, call.args, call.kwargs)
    leaf = call.leaf_of(given["input"])
    if leaf is None:
        return None
    flow, x = call.flows[leaf], given["input"]
    if given["dim"] % x.ndim != flow.time:
        return None
    if not flow.plain:
        raise UnstreamableError(ENDS)
    long = bind(names, _args_of(call, call.long.leaves), {})
    long_items = call.long.leaves[leaf][flow.time]
    start, length = int(given["start"]), int(given["length"])
    long_start, long_length = int(long.get("start", start)), int(long.get("length", length))
    term, long_term = slice(start, start + length), slice(long_start, long_start + long_length)
    begin, _ = _cut(term, x.shape[flow.time], long_term, long_items)
    fits, after = _sliced(planner, call, leaf, begin, 1)
    step = EveryStep(call.name, call.path, call.line, fits, axis=flow.time)
    return step, [dataclasses.replace(after, items=length)]


def pieces(planner: Planner, call: Call) -> Outcome | None:
    """chunk, split, unbind, select, index_select: fine on other axes.

    Raises:
        UnstreamableError: along time.
    """
    x = call.args[0] if call.args else call.kwargs.get("input")
    leaf = call.leaf_of(x) if isinstance(x, Tensor) else None
    if leaf is None:
        return None
    default = {"select": None, "index_select": None}.get(call.name, 0)
    place = 1 if call.name in ("unbind", "select", "index_select") else 2
    dim = call.kwargs.get("dim", call.args[place] if len(call.args) > place else default)
    if isinstance(dim, int) and dim % x.ndim == call.flows[leaf].time:
        raise UnstreamableError(ONE if call.name in ("unbind", "select", "index_select") else PIECES)
    return None


RULES = {
    "__getitem__": getitem,
    "narrow": narrow,
    **dict.fromkeys(
        (
            "chunk",
            "split",
            "split_with_sizes",
            "tensor_split",
            "unsafe_chunk",
            "unbind",
            "select",
            "index_select",
        ),
        pieces,
    ),
}
