"""F.pad along time: nothing is stored, the index of the items moves. What needs the padding brings it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind
from streamssm.export.convert.flow import Flow, Layout
from streamssm.export.convert.itemwise import UnstreamableError
from streamssm.export.convert.plan import Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.refusal import explained
from streamssm.export.convert.session import Session

NAMES = ("input", "pad", "mode", "value")
FOLLOWS = (
    "pads by a number of items that depends on the length of the sequence",
    "pad by a constant; a stream has no length to be padded to",
)
MODE = (
    "pads time with items of the sequence ({mode})",
    "pad with zeros, as a stream begins with nothing: mode='constant'",
)
TWICE = ("pads with one value what is already padded with another", "pad once, with one value")


@dataclass
class PadStep(Step):
    """Pad the other axes only."""

    pad: list[int] = field(default_factory=list)

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Pad, or pass on."""
        args, kwargs = self.fitted(session, args, kwargs)
        given = bind(NAMES, args, kwargs)
        return func(**given | {"pad": self.pad}) if any(self.pad) else given["input"].clone()


def padded(flow: Flow, left: int, fill: float = 0.0) -> Flow:
    """The flow with ``left`` items of ``fill`` before it (fewer than none: cut off)."""
    if left > 0 and flow.lead and flow.fill != fill:
        raise UnstreamableError(TWICE)
    lead = max(flow.lead + left, 0)
    return dataclasses.replace(flow, late=flow.late - left, lead=lead, fill=fill if left > 0 else flow.fill)


def pad(planner: Planner, call: Call) -> Outcome | None:
    """Move the index by the items on the left; those on the right lie in the future.

    Raises:
        UnstreamableError: the padding is not constant.
    """
    given = bind(NAMES, call.args, call.kwargs)
    index = call.leaf_of(given["input"])
    if index is None:
        return None
    flow = call.flows[index]
    amounts = [int(amount) for amount in given["pad"]]
    place = 2 * (given["input"].ndim - 1 - flow.time)
    if place >= len(amounts):
        return None
    here = amounts[place : place + 2]
    if call.numbers_follow_length():
        raise UnstreamableError(FOLLOWS)
    if not flow.plain:
        raise UnstreamableError(FOLLOWS)
    mode = given.get("mode") or "constant"
    if mode != "constant":
        raise UnstreamableError((MODE[0].format(mode=mode), MODE[1]))
    fill = float(given.get("value") or 0.0)
    amounts[place : place + 2] = [0, 0]
    step = PadStep(call.name, call.path, call.line, pad=amounts)
    if any(amounts) and flow.lead:  # other axes are padded with the same value: pad what is there
        late, extra = planner.aligned([flow])
        step.fits = planner.fit_all(call, {index: (late, extra)})
        flow = dataclasses.replace(flow, late=late, extra=extra, lead=0)
    layout = layout_of(call)
    after = padded(flow, here[0], fill)
    return step, [dataclasses.replace(after, layout=layout, items=flow.items + sum(here))]


def layout_of(call: Call) -> Layout:
    """The layout of a call's one result.

    Raises:
        UnstreamableError: batch or time cannot be found in it.
    """
    layout = call.layouts()[0]
    if isinstance(layout, str):
        raise UnstreamableError(explained(call.name))
    return layout


RULES = {"pad": pad}
