"""Transposed convolutions along time: item i spreads over outputs s i ... s i + S - 1.

Without padding, output n sums over the items up to n // s and so is complete when its own hop
has come. The padding P of a transposed convolution cuts P outputs at the start: the index moves,
which makes the outputs P later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind
from streamssm.export.convert.flow import Flow
from streamssm.export.convert.plan import Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.rules.padding import layout_of, padded
from streamssm.export.convert.rules.windows import for_each_axis
from streamssm.export.convert.session import Session

NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


@dataclass
class TransposedStep(Step):
    """The user's function on history and chunk, uncut; then the outputs that are complete."""

    replace: dict[str, Any] = field(default_factory=dict)
    axis: int = 0
    stride: int = 1
    history: int = 0

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """See the module docstring."""
        args, kwargs = self.fitted(session, args, kwargs)
        given = bind(NAMES, args, kwargs)
        items = given["input"].shape[self.axis]
        y = func(**given | self.replace)
        first = self.history * self.stride
        return y.narrow(self.axis, first, items * self.stride - first)


def transposed(planner: Planner, call: Call) -> Outcome | None:
    """conv_transpose1d and 2d with time as one of the axes."""
    given = bind(NAMES, call.args, call.kwargs)
    index = call.leaf_of(given["input"])
    if index is None or len(call.metas) > 1:
        return None
    flow, weight, x = call.flows[index], given["weight"], given["input"]
    axes = weight.ndim - 2
    along = flow.time - (x.ndim - axes)
    if along < 0 or not flow.plain:
        return None
    stride, dilation = (
        for_each_axis(given.get("stride", 1), axes),
        for_each_axis(given.get("dilation", 1), axes),
    )
    padding, output = (
        for_each_axis(given.get("padding", 0), axes),
        for_each_axis(given.get("output_padding", 0), axes),
    )
    span, s = (weight.shape[2 + along] - 1) * dilation[along] + 1, stride[along]
    history = max(0, -(-span // s) - 1)
    # before the stream there is nothing to spread: the history is padding with zeros
    source = padded(flow, history) if history else flow
    late = max(flow.late, 0)
    fit = planner.fit(call, index, source, late, source.extra + late - source.late)
    step = TransposedStep(
        call.name,
        call.path,
        call.line,
        {} if fit is None else {index: fit},
        replace={
            "padding": _with(padding, along, 0),
            "output_padding": _with(output, along, max(0, s - span)),
        },
        axis=flow.time,
        stride=s,
        history=history,
    )
    layout = layout_of(call)
    items = call.outs[0].shape[flow.time]
    extra = (source.extra + late - source.late - history) * s
    return step, [Flow(layout, flow.rate * s, items, late * s + padding[along], extra)]


def _with(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


RULES = dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), transposed)
