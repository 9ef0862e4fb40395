"""The proof that a call works item by item: no knowledge of the function, only what it does.

A function keeps the stream if it gives, for blocks of q input items, blocks of m output items
that depend on nothing else. So: permuted blocks give permuted blocks (nothing depends on the
order, on neighbours or on the position), fewer blocks give the same blocks (no statistic over
all of them), and the rows of a batch do not see each other. Each is tried on the values of the
run; what no call breaks, the proof on the whole model still has to confirm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from streamssm.export.convert.call import Call
from streamssm.export.convert.flow import Flow, Layout, take
from streamssm.export.convert.refusal import ATTENTION, KNOWN, MIXING, RANDOM, explained

POSITION = (
    "adds or multiplies a value that depends on the position in the sequence",
    "an endless stream has no last position: use rotary positions in a recognised attention, a causal "
    "convolution for local order, or no positions at all (recurrent layers know the order)",
)
LENGTH = (
    "uses a number that depends on the length of the sequence",
    "use a constant, or a running statistic",
)
BATCH = (
    "mixes the rows of a batch",
    "rows are separate streams: keep the batch on an axis of its own (convert's batch=1 if it comes after "
    "time, as in nn.GRU without batch_first), and BatchNorm in evaluation mode",
)
LOST_TIME = (
    "reduces the whole sequence to one value",
    "give an output at every item instead (a recurrent layer's output at an item knows all items before it)",
)
RATES = (
    "joins sequences of different lengths or rates",
    "bring both to one rate first, by a stride or by upsampling",
)

#: arguments of these functions that follow the length are sizes, nothing more
SIZED = frozenset(["expand", "expand_as", "broadcast_to", "interpolate", "view", "reshape", "unflatten"])


@dataclass(frozen=True)
class ItemWise:
    """q items in, m items out, and the layout of each result."""

    q: int
    m: int
    layouts: tuple[Layout, ...]


class UnstreamableError(Exception):
    """The call does not work item by item; ``why`` and ``remedy``."""

    def __init__(self, said: tuple[str, str]):
        super().__init__(said[0])
        self.said = said


def item_wise(call: Call) -> ItemWise:
    """Prove it.

    Raises:
        UnstreamableError: it is not so.
    """
    flow = _common_flow(call)
    if call.name not in SIZED and call.numbers_follow_length():
        raise UnstreamableError(KNOWN.get(call.name, LENGTH))
    layouts = _layouts_or_broken(call)
    q, m = _blocks(call, flow, layouts)
    if call.constant_changes():
        raise UnstreamableError(POSITION if call.constants_follow_length() else RANDOM)
    if not _permutes(call, flow, layouts, q, m) or not _truncates(call, flow, layouts):
        raise UnstreamableError(_mixing(call))
    if not _rows_apart(call, layouts):
        raise UnstreamableError(BATCH)
    return ItemWise(q, m, layouts)


def _mixing(call: Call) -> tuple[str, str]:
    return POSITION if call.constants_follow_length() else explained(call.name, MIXING)


def _common_flow(call: Call) -> Flow:
    flows = list(call.flows.values())
    if any((f.rate, f.items) != (flows[0].rate, flows[0].items) for f in flows):
        raise UnstreamableError(RATES)
    return flows[0]


def _layouts_or_broken(call: Call) -> tuple[Layout, ...]:
    layouts = call.layouts()
    for layout in layouts:
        if layout == "no time":
            raise UnstreamableError(explained(call.name, LOST_TIME))
        if layout == "two times":
            raise UnstreamableError(ATTENTION)
        if isinstance(layout, str):
            raise UnstreamableError(BATCH)
    return tuple(layout for layout in layouts if not isinstance(layout, str))


def _blocks(call: Call, flow: Flow, layouts: tuple[Layout, ...]) -> tuple[int, int]:
    """q and m from the sizes; a composite axis of batch and time keeps its length."""
    ratios = {Fraction(1)} if not layouts else set()
    for out, layout in zip(call.outs, layouts, strict=True):
        items = time_size(call, out, layout)
        ratios.add(Fraction(items, flow.items))
    if len(ratios) != 1:
        raise UnstreamableError(explained(call.name, RATES))
    q, m = (ratio := ratios.pop()).denominator, ratio.numerator
    if flow.items % q or q > flow.items // 2:
        raise UnstreamableError(explained(call.name, MIXING))
    return q, m


def time_size(call: Call, out: Tensor, layout: Layout) -> int:
    """The number of items in a result."""
    axis = next(a for a, factors in enumerate(layout) if "T" in factors)
    return out.shape[axis] // (call.sizes.batch if "B" in layout[axis] else 1)


def _permutes(call: Call, flow: Flow, layouts: tuple[Layout, ...], q: int, m: int) -> bool:
    blocks = flow.items // q
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(blocks))
    if blocks > 1 and torch.equal(order, torch.arange(blocks)):
        order = order.flip(0)
    into, out_of = _spread(order, q), _spread(order, m)
    found = _attempt(call, lambda x, f: take(x, f.layout, "T", into, f.items))
    wanted = [
        take(out, layout, "T", out_of, blocks * m) for out, layout in zip(call.outs, layouts, strict=True)
    ]
    return _all_close(found, wanted)


def _spread(order: Tensor, size: int) -> Tensor:
    return (order[:, None] * size + torch.arange(size)).flatten()


def _truncates(call: Call, flow: Flow, layouts: tuple[Layout, ...]) -> bool:
    """Drop items at the end, as a shorter input would: constants and sizes follow."""
    step = call.sizes.longer - call.sizes.items  # a whole number of hops
    cut = step * max(1, call.sizes.items // step // 2)
    if cut >= call.sizes.items:
        return True
    fewer = int(cut * flow.rate)
    if fewer >= flow.items:
        return True
    found = _attempt(
        call, lambda x, f: take(x, f.layout, "T", torch.arange(f.items - fewer), f.items), shorter=cut
    )
    wanted = []
    for out, layout in zip(call.outs, layouts, strict=True):
        items = time_size(call, out, layout)
        kept = items - int(fewer * Fraction(items, flow.items))
        wanted.append(take(out, layout, "T", torch.arange(kept), items))
    return _all_close(found, wanted)


def _rows_apart(call: Call, layouts: tuple[Layout, ...]) -> bool:
    """Each row alone in the batch's place: the others filled with the first row."""
    batch = call.sizes.batch
    index = torch.zeros(batch, dtype=torch.int64)
    index[-1] = batch - 1
    swapped = torch.arange(batch).flip(0)
    for order in (swapped, index):
        found = _attempt(call, lambda x, f, order=order: take(x, f.layout, "B", order, batch), rows=order)
        wanted = [
            take(out, layout, "B", order, batch) for out, layout in zip(call.outs, layouts, strict=True)
        ]
        if not _all_close(found, wanted):
            return False
    return True


def _attempt(
    call: Call, change: Callable[[Tensor, Flow], Tensor], shorter: int = 0, rows: Tensor | None = None
) -> list[Tensor] | None:
    """The results with changed inputs; None if the function does not take them."""
    leaves = list(call.leaves)
    for index, flow in call.flows.items():
        leaves[index] = change(leaves[index], flow)
    if shorter:
        _shorten(call, leaves, shorter)
    if rows is not None:
        _reorder_constants(call, leaves, rows)
    try:
        return call.evaluate(leaves)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None


def _shorten(call: Call, leaves: list[Any], cut: int) -> None:
    """Sizes and constants as an input shorter by ``cut`` items would have them."""
    for index in call.numbers_follow_length():
        leaves[index] = shortened(call, call.leaves[index], call.long.leaves[index], cut)
    for index, axes in call.constants_follow_length().items():
        for axis in axes:
            size, longer = call.leaves[index].shape[axis], call.long.leaves[index].shape[axis]
            leaves[index] = leaves[index].narrow(axis, 0, int(size - call.slope(size, longer) * cut))


def shortened(call: Call, value: Any, longer: Any, cut: int) -> Any:
    """A number, or a tuple of them, that follows the length, for an input shorter by ``cut``."""
    if isinstance(value, tuple):
        pairs = zip(value, longer, strict=True)
        return tuple(shortened(call, a, b, cut) if a != b else a for a, b in pairs)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value - call.slope(value, longer) * cut)
    return value


def _reorder_constants(call: Call, leaves: list[Any], rows: Tensor) -> None:
    """Constants with an axis for the batch follow the rows: they may differ from row to row."""
    for index, leaf in enumerate(call.leaves):
        other = call.wide.leaves[index]
        if isinstance(leaf, Tensor) and index not in call.metas and isinstance(other, Tensor):
            for axis, (size, wider) in enumerate(zip(leaf.shape, other.shape, strict=False)):
                if (size, wider) == (call.sizes.batch, call.sizes.wider):
                    leaves[index] = leaf.index_select(axis, rows)


def _all_close(found: list[Tensor] | None, wanted: list[Tensor]) -> bool:
    return (
        found is not None
        and len(found) == len(wanted)
        and all(close(a, b) for a, b in zip(found, wanted, strict=True))
    )


def close(a: Tensor, b: Tensor) -> bool:
    """Equal within the rounding of one call in their dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, torch.zeros_like(a), a - b).abs()
    finite = b.abs()[b.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    bound = 1e-9 if a.dtype in (torch.float64, torch.complex128) else 1e-4
    return not difference.numel() or float(difference.max()) <= bound * (scale + 1e-3)
