"""A call of a stream: the user's forward, with the plan's step for each counted call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.convert.flow import Layout, axis_of, count_mask, from_rows, to_rows
from streamssm.export.convert.plan import Fit, Mask, Plan
from streamssm.export.convert.records import copies_of
from streamssm.export.convert.tracker import Follower
from streamssm.export.layers.base import State, StreamingLayer

CLOCK = "clock"


class Session(Follower):
    """One call with a carried state; ``following`` is the next state."""

    streams = True

    def __init__(
        self, plan: Plan, twins: dict[str, StreamingLayer], state: State, batch: int, keep: bool = False
    ):
        super().__init__()
        self.plan, self.twins, self.state, self.batch = plan, twins, state, batch
        self.keep = keep
        self.trace: list[list[Tensor]] = []
        self.following: State = {}
        self.count = 0

    def counted(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Do what the plan says for this call."""
        steps = self.plan.steps
        step = steps[self.count] if self.count < len(steps) else None
        if step is None or step.name != name:
            wanted = "nothing more" if step is None else step.place
            raise LayerError(
                f"the model's forward took another way than when it was converted: call {self.count} is "
                f"{name}, not {wanted}; what it does must not depend on the length of a chunk or on values"
            )
        self.count += 1
        result = step.run(self, func, args, kwargs)
        if self.keep:
            self.trace.append(copies_of(name, args, kwargs, result))
        return result

    def fit(self, x: Tensor, fit: Fit) -> Tensor:
        """See :class:`Fit`."""
        time = axis_of(fit.layout, "T")
        if fit.history:
            x = self._with_history(x, fit, time)
        if fit.mask is not None:
            x = x.masked_fill(self.padding(fit.mask, fit.layout, x.shape[time], x.ndim), fit.mask.fill)
        return x.narrow(time, 0, x.shape[time] - fit.drop) if fit.drop else x

    def _with_history(self, x: Tensor, fit: Fit, time: int) -> Tensor:
        past = self.state[fit.state]
        full = torch.cat([from_rows(past, fit.layout), x.to(past.dtype)], dim=time)
        end = full.shape[time] - fit.extra
        self.following[fit.state] = to_rows(full.narrow(time, end - fit.history, fit.history), fit.layout)
        return full.to(x.dtype)

    def padding(self, mask: Mask, layout: Layout, items: int, ndim: int) -> Tensor:
        """Which items are padding, to be broadcast with a tensor of the layout."""
        before = self.before_rows(mask, items)
        if mask.late > 0:  # what lies before the padding stays as it is, finite: no window needs it
            before = before & ~self.before_rows(dataclasses.replace(mask, lead=0), items)
        batch, time = axis_of(layout, "B"), axis_of(layout, "T")
        for size in layout[batch][1:]:
            before = before.repeat_interleave(int(size), dim=0)
        if time < batch:
            before = before.T
        for axis in range(ndim):
            if axis not in (batch, time):
                before = before.unsqueeze(axis)
        return before

    def before_rows(self, mask: Mask, items: int) -> Tensor:
        """Which items lie before ``mask.lead``, [B, items]."""
        first = self.state[CLOCK] * mask.rate.numerator // mask.rate.denominator - mask.late
        return count_mask(first, items, mask.lead)
