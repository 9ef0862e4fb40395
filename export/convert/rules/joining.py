"""torch.cat along time: with constants on one side it is padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind
from streamssm.export.convert.itemwise import UnstreamableError
from streamssm.export.convert.plan import Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.rules.padding import layout_of, padded
from streamssm.export.convert.session import Session

NAMES = ("tensors", "dim")
TWO = (
    "puts sequences one after another",
    "a stream has one sequence; run them one by one, or side by side on another axis",
)
PREFIX = (
    "puts learned or varying items before the sequence",
    "push those items at the start of the stream instead, or use zeros",
)


@dataclass
class PassStep(Step):
    """The only part that is made from the stream."""

    part: int = 0

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Pass on."""
        args, kwargs = self.fitted(session, args, kwargs)
        return bind(NAMES, args, kwargs)["tensors"][self.part].clone()


def cat(planner: Planner, call: Call) -> Outcome | None:
    """Zeros, or another value, before or after the one sequence.

    Raises:
        UnstreamableError: anything else along time.
    """
    given = bind(NAMES, call.args, call.kwargs)
    parts, flow = list(given["tensors"]), next(iter(call.flows.values()))
    dim = given.get("dim", given.get("axis", 0)) or 0
    if not isinstance(dim, int) or dim % call.outs[0].ndim != flow.time:
        return None
    if len(call.metas) > 1:
        raise UnstreamableError(TWO)
    (index,) = call.flows
    here = next(i for i, part in enumerate(parts) if part is call.leaves[index])
    values = {_value(part) for i, part in enumerate(parts) if i != here and part.shape[flow.time]}
    if call.constants_follow_length() or not flow.plain:
        raise UnstreamableError(TWO)
    if len(values) > 1:
        raise UnstreamableError(PREFIX)
    left = sum(part.shape[flow.time] for part in parts[:here])
    after = padded(flow, left, values.pop() if values else 0.0)
    step = PassStep(call.name, call.path, call.line, part=here)
    items = call.outs[0].shape[flow.time]
    return step, [dataclasses.replace(after, layout=layout_of(call), items=items)]


def _value(part: Tensor) -> float:
    """The one value of a constant.

    Raises:
        UnstreamableError: it has several.
    """
    first = part.flatten()[0]
    if not bool((part == first).all()):
        raise UnstreamableError(PREFIX)
    return float(first)


RULES = dict.fromkeys(("cat", "concat", "concatenate"), cat)
