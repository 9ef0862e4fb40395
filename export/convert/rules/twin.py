"""A module that a streaming layer stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streamssm.errors import StreamSSMError
from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind, leaves_of, name_of, rebuilt
from streamssm.export.convert.flow import Flow, Layout, Poison, axis_of
from streamssm.export.convert.itemwise import RANDOM, UnstreamableError
from streamssm.export.convert.plan import Mask, Step, dead_form
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.rules.attention import SDPA, banded
from streamssm.export.convert.rules.padding import layout_of
from streamssm.export.convert.session import Session
from streamssm.export.convert.tracker import Twin, call_twin
from streamssm.export.convert.warm import starting
from streamssm.export.layers.base import StateSpec, StreamingLayer

FINAL = (
    "gives its last state, a value of the whole sequence",
    "use the output at each item instead",
)
WARM = (
    "is recurrent and comes after a look-ahead of {late} items, which it cannot sit out",
    "put it before the look-ahead, or let its twin honour streamssm.export.convert.warm (handles_warm_up)",
)
SECOND = (
    "takes a second input that is made from the stream",
    "give it one sequence; as a start only constants",
)
DIFFERS = (
    "gives other values than its twin (off by {error:.2g} of the largest): it uses options that the twin "
    "does not know",
    "register a twin of your own: streamssm.export.convert.register",
)
TOLERANCE = 1e-4


@dataclass
class TwinStep(Step):
    """Call the twin with its states instead of the module."""

    names: dict[str, str] = field(default_factory=dict)
    given: Layout = ()
    gives: Layout = ()
    inner: int = 1
    leaf: int = 0
    form: tuple = ()
    spec: Any = None
    result: int = 0
    mask: Mask | None = None
    window: int | None = None

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Rows in, rows out."""
        args, kwargs = self.fitted(session, args, kwargs)
        x = leaves_of((args, kwargs))[0][self.leaf]
        rows = x.movedim((axis_of(self.given, "B"), axis_of(self.given, "T")), (0, 1))
        state = {own: self._merged(session.state[name]) for own, name in self.names.items()}
        before = None
        if self.mask is not None:
            before = session.before_rows(self.mask, rows.shape[1]).repeat_interleave(self.inner, dim=0)
        with starting(before):
            y, following = call_twin(session.twins[self.path], rows, state, args, kwargs)
        for own, name in self.names.items():
            session.following[name] = self._parted(following[own])
        y = y.movedim((0, 1), (axis_of(self.gives, "B"), axis_of(self.gives, "T")))
        leaves = [None if form is None else y.new_zeros(1) for form in self.form]
        leaves[self.result] = y
        return rebuilt(leaves, self.spec)

    def reference(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The module itself, with the window as a mask wherever it attends."""
        with contextlib.nullcontext() if self.window is None else Banded(self.window):
            return func(*args, **kwargs)

    def _merged(self, value: Tensor) -> Tensor:
        return value if self.inner == 1 else value.flatten(0, 1)

    def _parted(self, value: Tensor) -> Tensor:
        return value if self.inner == 1 else value.unflatten(0, (-1, self.inner))


class Banded(TorchFunctionMode):
    """Attention sees the last ``window`` items only."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if name_of(func) == "scaled_dot_product_attention":
            return func(**banded(bind(SDPA, args, given), self.window))
        return func(*args, **given)


def twin(planner: Planner, call: Call, treatment: Twin) -> Outcome | None:
    """Stand a twin for the module; None if time is not the axis that the module runs along.

    Raises:
        UnstreamableError: the twin cannot, or gives other values.
    """
    index = next(iter(call.metas))
    flow, x, layer = call.flows[index], call.leaves[index], treatment.layer
    if not flow.plain or flow.time != treatment.time % x.ndim:
        return None
    if isinstance(layer, TwinError):
        raise UnstreamableError((layer.why, layer.remedy))
    if len(call.metas) > 1:
        raise UnstreamableError(SECOND)
    if call.constant_changes():
        raise UnstreamableError(RANDOM)
    if flow.layout[flow.batch][0] != "B":
        return None
    late, _ = planner.aligned([flow], layer.hop)
    planner.need_hop(layer.hop, flow.rate)
    step = TwinStep(call.name, call.path, call.line, given=flow.layout, leaf=index)
    step.fits = planner.fit_all(call, {index: (late, 0)})
    _keep_states(planner, call, step, layer, flow, late)
    step.form, step.spec = dead_form(call.result)
    step.result = next(i for i, form in enumerate(step.form) if form is not None)
    step.imposed = getattr(layer, "imposed", False)
    step.window = planner.window if step.imposed else None
    step.gives = layout_of(call)
    _compare(call, step, layer, rows_of(x, flow.layout))
    ratio = Fraction(layer.output_ratio)
    out = call.outs[0].shape[axis_of(step.gives, "T")]
    y = Flow(step.gives, flow.rate * ratio, out, int((late + layer.lookahead) * ratio), 0)
    return step, [y, *[Poison(frozenset({planner.refusal(call, FINAL)}))] * (len(call.outs) - 1)]


def rows_of(x: Tensor, layout: Layout) -> Tensor:
    """x -> [batch of all rows, T, ...]."""
    return x.movedim((axis_of(layout, "B"), axis_of(layout, "T")), (0, 1))


def _keep_states(
    planner: Planner, call: Call, step: TwinStep, layer: StreamingLayer, flow: Flow, late: int
) -> None:
    spec = layer.state_spec()
    if late and spec and not getattr(layer, "handles_warm_up", False):
        raise UnstreamableError((WARM[0].format(late=late), WARM[1]))
    for factor in flow.layout[flow.batch][1:]:
        step.inner *= int(factor)
    inner = (step.inner,) if step.inner > 1 else ()
    for own, one in spec.items():
        name = planner.new_state(call.path, own, (), torch.float32)
        planner.states[name] = StateSpec((*inner, *one.shape), one.dtype)
        step.names[own] = name
    if late and spec:
        step.mask = Mask(flow.rate, late, 0, 0.0)
        planner.clock = True


def _compare(call: Call, step: TwinStep, layer: StreamingLayer, rows: Tensor) -> None:
    """The twin's whole sequence against the module's own, on the values of this run.

    Raises:
        UnstreamableError: they differ, or the twin does not take the input.
    """
    state = {
        name: value.to(rows.dtype) if value.is_floating_point() and rows.is_floating_point() else value
        for name, value in layer.init_state(rows.shape[0], rows.device).items()
    }
    try:
        y, _ = call_twin(layer, rows, state, call.args, call.kwargs)
    except (StreamSSMError, RuntimeError, TypeError) as error:
        raise UnstreamableError(
            (f"is called in a way that its twin does not take ({error})", DIFFERS[1])
        ) from error
    y = y.movedim((0, 1), (axis_of(step.gives, "B"), axis_of(step.gives, "T")))
    own = call.outs[0]
    if step.window is not None:
        own = leaves_of(step.reference(call.func, call.args, call.kwargs))[0][step.result]
    if y.shape != own.shape:
        raise UnstreamableError((f"gives {tuple(own.shape)}, its twin {tuple(y.shape)}", DIFFERS[1]))
    skip = layer.lookahead * layer.output_ratio
    error = (
        float((y - own)[:, int(skip) :].abs().max() / own.abs().max().clamp(min=1e-30)) if y.numel() else 0.0
    )
    if not error <= TOLERANCE:
        raise UnstreamableError((DIFFERS[0].format(error=error), DIFFERS[1]))
