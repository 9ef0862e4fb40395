"""A user's model as a streaming layer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.convert.calls import leaves_of
from streamssm.export.convert.flow import to_rows
from streamssm.export.convert.plan import OutputPlan, Plan
from streamssm.export.convert.records import copies_of
from streamssm.export.convert.session import CLOCK, Session
from streamssm.export.convert.tracker import Atomic, Follower, Treatment, Twin, rewritten, watching
from streamssm.export.layers.base import State, StateSpec, StreamingLayer

#: a forward is watched by marks on the module itself: one at a time
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Entry:
    """How the user's forward takes a sequence: axes of batch and time, items, constant arguments."""

    batch: int
    time: int
    item_shape: tuple[int, ...]
    dtype: torch.dtype
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def given(self, x: Tensor) -> Tensor:
        """x [B, T, *item_shape] with its axes where the model wants them."""
        return x.movedim((0, 1), (self.batch, self.time))

    def call(self, model: nn.Module, x: Tensor) -> Any:
        """The model's own forward on x, axes as the model wants them."""
        return model(x, *self.args, **self.kwargs)


class ConvertedLayer(StreamingLayer):
    """The user's module, run call by call with a carried state; see :func:`streamssm.export.convert`.

    ``model`` is that very module, its weights are shared. ``note`` says what was assumed.
    """

    def __init__(
        self,
        model: nn.Module,
        entry: Entry,
        plan: Plan,
        treatments: Mapping[str, Treatment],
        note: tuple[str, ...] = (),
    ):
        super().__init__()
        self.model, self.entry, self.plan, self.note = model, entry, plan, note
        self.window_imposed = plan.window_imposed
        # a module that has no twin although its class is known is used across time only
        treatments = {p: Atomic() if _refused(t) else t for p, t in treatments.items()}
        twins = {path: t for path, t in treatments.items() if isinstance(t, Twin)}
        self.twins = nn.ModuleList(twin.layer for twin in twins.values())
        self._twin_places = [(path, twin.time) for path, twin in twins.items()]
        self._others = {path: t for path, t in treatments.items() if not isinstance(t, Twin)}
        self.item_shape, self.item_dtype = entry.item_shape, entry.dtype
        self.vocabulary, self.lookahead, self._hop = plan.vocabulary, plan.lookahead, plan.hop
        self.output_ratio = plan.outputs[0].rate
        self.output_names = tuple(output.name for output in plan.outputs)

    @property
    def hop(self) -> int:
        """The least input that gives every stride and every output whole items."""
        return self._hop

    def ratio_of(self, name: str) -> Fraction:
        """Output items per input item of one output."""
        return next((output.rate for output in self.plan.outputs if output.name == name), self.output_ratio)

    def state_spec(self) -> dict[str, StateSpec]:
        """The states of all calls, named by the path of the module they belong to."""
        clock = {CLOCK: StateSpec((), torch.int64)} if self.plan.clock else {}
        return self.plan.states | clock

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor | dict[str, Tensor], State]:
        """The user's forward on the next items; a dictionary if there are several outputs."""
        state = self.start(x, state)
        if not torch.compiler.is_exporting() and not x.shape[1]:
            return self._nothing(x), state
        with _LOCK:
            session, result = self._run(x, state)
        leaves = leaves_of(result)[0]
        outputs = {plan.name: self._output(session, leaves[plan.leaf], plan) for plan in self.plan.outputs}
        if CLOCK in state:
            session.following[CLOCK] = state[CLOCK] + x.shape[1]
        following = {name: session.following[name] for name in self.state_spec()}
        return (outputs if len(outputs) > 1 else next(iter(outputs.values()))), following

    def reference(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """What :meth:`forward` gives from the start of a stream, by the module's own forward in evaluation
        mode.

        Attention is limited to the window, if one is imposed. With a look-ahead the outputs before
        the first item are zero.
        """
        with _LOCK, evaluating(self.model):
            result = self.whole(x)
        leaves = leaves_of(result)[0]
        outputs = {}
        for plan in self.plan.outputs:
            rows, late = to_rows(leaves[plan.leaf], plan.layout), int(self.lookahead * plan.rate)
            count = int(x.shape[1] * plan.rate)
            shifted = torch.cat([rows.new_zeros(rows.shape[0], late, *rows.shape[2:]), rows], dim=1)
            outputs[plan.name] = shifted[:, :count]
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def whole(self, x: Tensor) -> Any:
        """The module's own result for x [B, T, *item_shape] as one sequence."""
        if self.window_imposed is None:
            return original(self.model, self.entry, x, self.treatments())
        tracker = _Whole(self.plan)
        with watching(self.model, tracker, self.treatments()):
            given = self.entry.given(x.clone())
            tracker.follow(given)
            return self.entry.call(self.model, given)

    def trace(self, x: Tensor, state: State) -> list[list[Tensor]]:
        """The results of every call of a stream's first chunk."""
        with _LOCK:
            session, _ = self._run(x, state, keep=True)
        return session.trace

    def trace_whole(self, x: Tensor) -> list[list[Tensor]]:
        """The results of every call of the whole-sequence form."""
        tracker = _Whole(self.plan, keep=True)
        with _LOCK, watching(self.model, tracker, self.treatments()):
            given = self.entry.given(x.clone())
            tracker.follow(given)
            self.entry.call(self.model, given)
        return tracker.trace

    def treatments(self) -> dict[str, Treatment]:
        """What is done with the marked modules."""
        places = zip(self._twin_places, self.twins, strict=True)
        return {path: Twin(layer, time) for (path, time), layer in places} | self._others

    def _run(self, x: Tensor, state: State, keep: bool = False) -> tuple[Session, Any]:
        twins = {path: layer for (path, _), layer in zip(self._twin_places, self.twins, strict=True)}
        session = Session(self.plan, twins, state, x.shape[0], keep)
        with watching(self.model, session, self.treatments()):
            given = self.entry.given(x.clone())
            session.follow(given)
            result = self.entry.call(self.model, given)
        if session.count != len(self.plan.steps):
            raise LayerError(
                f"the model's forward ended after {session.count} of {len(self.plan.steps)} calls; what it "
                "does must not depend on the length of a chunk or on values"
            )
        return session, result

    def _output(self, session: Session, y: Tensor, plan: OutputPlan) -> Tensor:
        return to_rows(y if plan.fit is None else session.fit(y, plan.fit), plan.layout)

    def _nothing(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        like = next((p for p in self.parameters() if p.is_floating_point()), x)
        outputs = {
            plan.name: torch.empty(
                x.shape[0],
                0,
                *plan.shape,
                device=x.device,
                dtype=plan.dtype or like.dtype,
            )
            for plan in self.plan.outputs
        }
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each module put back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _refused(treatment: Treatment) -> bool:
    return isinstance(treatment, Twin) and not isinstance(treatment.layer, nn.Module)


def original(model: nn.Module, entry: Entry, x: Tensor, treatments: Mapping[str, Treatment]) -> Any:
    """The module's own result for x; where its own code does not run here, what stands for it."""
    try:
        return entry.call(model, entry.given(x.clone()))
    except Exception:
        stand_ins = {path: t for path, t in treatments.items() if not isinstance(t, Atomic)}
        if not stand_ins:
            raise
        with rewritten(model, stand_ins):
            return entry.call(model, entry.given(x.clone()))


class _Whole(Follower):
    """The whole-sequence form with the plan's window in its attention."""

    def __init__(self, plan: Plan, keep: bool = False):
        super().__init__()
        self.plan, self.keep, self.count = plan, keep, 0
        self.trace: list[list[Tensor]] = []

    def counted(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        """Call, with the mask if there is one."""
        step = self.plan.steps[self.count]
        self.count += 1
        result = step.reference(func, args, kwargs)
        if self.keep:
            self.trace.append(copies_of(name, args, kwargs, result))
        return result
