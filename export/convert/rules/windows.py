"""Convolutions, poolings and unfold along time: windows of S items every s, after padding.

Output i sees the padded items s i ... s i + S - 1. A stream brings the padding and the past as
history, in one piece, and calls the user's function without padding along time. A window that
ends later than its output's own hop makes the output late: a look-ahead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind
from streamssm.export.convert.flow import Flow
from streamssm.export.convert.itemwise import UnstreamableError
from streamssm.export.convert.plan import Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.rules.padding import layout_of, padded
from streamssm.export.convert.session import Session

CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVG_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
UNFOLD = ("input", "dimension", "size", "step")

PARTIAL = (
    "gives a last window that is not whole, or leaves its padding out of the average",
    "set ceil_mode=False and count_include_pad=True",
)
INDICES = ("returns positions in the sequence", "set return_indices=False")
UNEVEN = (
    "pads another axis by uneven amounts",
    "give padding as a number for each axis instead of 'same'",
)


@dataclass
class WindowStep(Step):
    """The user's function on history and chunk, with ``replace`` for its padding."""

    names: tuple[str, ...] = ()
    replace: dict[str, Any] = field(default_factory=dict)

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The function without padding along time."""
        args, kwargs = self.fitted(session, args, kwargs)
        if not self.replace:
            return func(*args, **kwargs)
        return func(**bind(self.names, args, kwargs) | self.replace)


@dataclass(frozen=True)
class Window:
    """Span S, stride s, padding on both sides and its value."""

    span: int
    stride: int
    left: int = 0
    right: int = 0
    fill: float = 0.0


def windowed(planner: Planner, flow: Flow, window: Window) -> tuple[Flow, tuple[int, int], Flow]:
    """The padded flow, the (late, extra) it is needed at, and the flow of the result (but for its
    layout and length)."""
    flow = padded(flow, window.left, window.fill) if window.left else flow
    planner.need_hop(window.stride, flow.rate)
    # the least history with a window for every stride, and with the padding there
    history = max(0, window.span - window.stride - flow.extra, -flow.late if flow.lead else 0)
    history += -(flow.late + history) % window.stride
    late, extra = flow.late + history, flow.extra + history
    after = Flow(
        flow.layout,
        flow.rate / window.stride,
        0,
        late // window.stride,
        (extra - window.span) // window.stride + 1,
    )
    return flow, (late, extra), after


def outcome(planner: Planner, call: Call, index: int, window: Window, step: WindowStep) -> Outcome:
    """Fit the input, and the meta of the one result.

    Raises:
        UnstreamableError: the result has other sizes than windows have.
    """
    flow = call.flows[index]
    padded_flow, goal, after = windowed(planner, flow, window)
    fit = planner.fit(call, index, padded_flow, *goal)
    step.fits = {} if fit is None else {index: fit}
    layout = layout_of(call)
    items = call.outs[0].shape[next(a for a, f in enumerate(layout) if "T" in f)]
    whole = (flow.items + window.left + window.right - window.span) // window.stride + 1
    if items != whole:
        raise UnstreamableError(PARTIAL)
    return step, [dataclasses.replace(after, layout=layout, items=items)]


def convolution(planner: Planner, call: Call) -> Outcome | None:
    """conv1d, conv2d, conv3d with time as one of the axes they slide along.

    Raises:
        UnstreamableError: see :data:`UNEVEN`.
    """
    given = bind(CONV, call.args, call.kwargs)
    index = call.leaf_of(given["input"])
    if index is None or len(call.metas) > 1:
        return None
    flow, weight = call.flows[index], given["weight"]
    axes = weight.ndim - 2
    along = flow.time - (given["input"].ndim - axes)
    if along < 0 or not flow.plain:
        return None
    stride, dilation = (
        for_each_axis(given.get("stride", 1), axes),
        for_each_axis(given.get("dilation", 1), axes),
    )
    spans = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    pads = _conv_padding(given.get("padding", 0), spans)
    if any(left != right for axis, (left, right) in enumerate(pads) if axis != along):
        raise UnstreamableError(UNEVEN)
    replace = {"padding": tuple(0 if axis == along else pads[axis][0] for axis in range(axes))}
    step = WindowStep(call.name, call.path, call.line, names=CONV, replace=replace)
    return outcome(planner, call, index, Window(spans[along], stride[along], *pads[along]), step)


def _conv_padding(padding: Any, spans: list[int]) -> list[tuple[int, int]]:
    if padding == "same":  # torch puts the odd one on the right
        return [((span - 1) // 2, span - 1 - (span - 1) // 2) for span in spans]
    amounts = (0,) * len(spans) if padding == "valid" else for_each_axis(padding, len(spans))
    return [(amount, amount) for amount in amounts]


def pooling(planner: Planner, call: Call) -> Outcome | None:
    """max_pool and avg_pool with time as one of the axes they slide along.

    Raises:
        UnstreamableError: see :data:`PARTIAL` and :data:`INDICES`.
    """
    largest = call.name.startswith("max")
    given = bind(MAX_POOL if largest else AVG_POOL, call.args, call.kwargs)
    index = call.leaf_of(given["input"])
    if index is None:
        return None
    axes, flow = int(call.name[-2]), call.flows[index]
    along = flow.time - (given["input"].ndim - axes)
    if along < 0 or not flow.plain:
        return None
    size = for_each_axis(given["kernel_size"], axes)
    stride = for_each_axis(given.get("stride") or size, axes)
    padding, dilation = (
        for_each_axis(given.get("padding", 0), axes),
        for_each_axis(given.get("dilation", 1), axes),
    )
    if given.get("return_indices"):
        raise UnstreamableError(INDICES)
    if padding[along] and not largest and given.get("count_include_pad") is False:
        raise UnstreamableError(PARTIAL)
    left = padding[along]
    window = Window(
        (size[along] - 1) * dilation[along] + 1, stride[along], left, left, -math.inf if largest else 0.0
    )
    replace = {"padding": tuple(0 if axis == along else amount for axis, amount in enumerate(padding))}
    names = MAX_POOL if largest else AVG_POOL
    return outcome(
        planner,
        call,
        index,
        window,
        WindowStep(call.name, call.path, call.line, names=names, replace=replace),
    )


def unfold(planner: Planner, call: Call) -> Outcome | None:
    """Tensor.unfold along time."""
    given = bind(UNFOLD, call.args, call.kwargs)
    index = call.leaf_of(given["input"])
    if index is None or "dimension" not in given:
        return None
    flow, x = call.flows[index], given["input"]
    if given["dimension"] % x.ndim != flow.time or not flow.plain:
        return None
    step = WindowStep(call.name, call.path, call.line, names=UNFOLD)
    return outcome(planner, call, index, Window(given["size"], given["step"]), step)


def for_each_axis(value: Any, count: int) -> tuple[int, ...]:
    """A number, or one for each axis, as one for each axis."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * count if len(values) == 1 else values


RULES = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(
        ("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"), pooling
    ),
    "unfold": unfold,
}
