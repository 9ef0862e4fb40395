"""From one run of a forward to the plan of its stream.

Every counted call is judged when it happens, with its real values: by a rule if it is known to
mix time (:mod:`.rules`), by proof otherwise (:mod:`.itemwise`). What cannot stream is a
:class:`Poison` on its results, refused only when an output needs them.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from streamssm.export.convert.call import Call, Sizes
from streamssm.export.convert.calls import MOVES, leaves_of, line_of_user, name_of
from streamssm.export.convert.flow import Flow, Layout, Meta, Poison, row_shape, rows_possible
from streamssm.export.convert.itemwise import ItemWise, UnstreamableError, item_wise, time_size
from streamssm.export.convert.plan import Dead, Fit, Mask, Step, dead_form
from streamssm.export.convert.records import Record, results_of
from streamssm.export.convert.refusal import ConversionError, Refusal
from streamssm.export.convert.tracker import Tracker, Treatment, Twin
from streamssm.export.layers.base import StateSpec

LEAKS = (
    "hands values of the stream to Python, which a graph cannot follow",
    "decide with torch.where instead of if, and keep checks of values out of forward",
)
BRANCH = (
    "is reached or not depending on the length of the input or the size of the batch",
    "let the forward make the same calls for every length: no loops over time, no branches on sizes",
)
LENGTH = (
    "calls len() of a tensor whose first axis is the batch or time: Python wants one number for good",
    "write x.shape[0] instead of len(x)",
)
ALIAS = (
    "writes in place through a view of another tensor",
    "write y = f(x) instead of changing x in place",
)
MERGED = (
    "needs the past while batch and time share an axis",
    "keep time on an axis of its own here: [batch, time, ...] or [batch, channels, time]",
)

#: what a rule gives: the step and a meta for each result; None to leave the call to the proof
Outcome = tuple[Step, list[Meta]]
Rule = Callable[["Planner", Call], "Outcome | None"]


class RetryError(Exception):
    """The run has to be done again with lengths that are multiples of ``hop``."""

    def __init__(self, hop: int):
        super().__init__(f"hop {hop}")
        self.hop = hop


class Planner(Tracker):
    """The run that is analysed; :attr:`steps` and :attr:`states` are its findings."""

    def __init__(
        self,
        long: list[Record],
        wide: list[Record],
        sizes: Sizes,
        treatments: Mapping[str, Treatment],
        rules: Mapping[str, Rule],
        twin_rule: Callable[[Planner, Call, Twin], Outcome | None],
        window: int | None,
    ):
        super().__init__()
        self.long, self.wide, self.sizes, self.rules = long, wide, sizes, rules
        self.treatments, self.twin_rule, self.window = treatments, twin_rule, window
        self.steps: list[Step] = []
        self.reasons: set[Refusal] = set()
        self.states: dict[str, StateSpec] = {}
        self.delays: list[tuple[str, Fraction]] = []
        self.hop, self.clock = 1, False
        #: the input itself, if it is tokens, and how many different ones there are
        self.tokens: Tensor | None = None
        self.vocabulary: int | None = None
        self._metas: dict[int, tuple[weakref.ref, Meta]] = {}

    # --- the tensors that are followed ----------------------------------------------------

    def follow(self, value: Any) -> None:
        """Nothing: results are followed with their metas by :meth:`counted`."""

    def followed(self, x: Tensor) -> bool:
        """Whether x has a meta."""
        return id(x) in self._metas

    def meta(self, x: Tensor) -> Meta | None:
        """What is known of x."""
        return self._metas[id(x)][1] if id(x) in self._metas else None

    def set_meta(self, x: Tensor, meta: Meta) -> None:
        """Follow x for as long as it lives."""
        key = id(x)
        self._metas[key] = (weakref.ref(x, lambda _: self._metas.pop(key, None)), meta)

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As every tracker; besides, refuse what would be one number in the exported graph."""
        if not self.paused and name_of(func) == "__len__":
            meta = self.meta(args[0])
            if isinstance(meta, Flow) and meta.layout[0] and isinstance(meta.layout[0][0], str):
                raise ConversionError([Refusal(*self.path, "len", *LENGTH, line=line_of_user())])
        return super().__torch_function__(func, types, args, kwargs)

    # --- one call -------------------------------------------------------------------------

    def counted(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Call, judge, note the step."""
        index = len(self.steps)
        if index >= min(len(self.long), len(self.wide)) or not (
            self.long[index].name == self.wide[index].name == name
        ):
            raise ConversionError(self.reasons or {Refusal(*self.path, name, *BRANCH, line=line_of_user())})
        leaves, spec = leaves_of((args, kwargs))
        metas = {
            i: self._metas[id(leaf)][1]
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and self.followed(leaf)
        }
        before = list(leaves)
        if results_in_place := name.endswith("_") or name.startswith("__") or "inplace" in kwargs:
            before = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        result = func(*args, **kwargs)
        outs = results_of(name, args, kwargs, result)
        path, kind = self.path
        call = Call(
            name, func, before, spec, metas, result, outs, self.long[index], self.wide[index], self.sizes,
            path, kind, line_of_user(),
        )  # fmt: skip
        self._note(call, outs, aliases=bool(results_in_place) and call.in_place)
        return result

    def _note(self, call: Call, outs: list[Tensor], aliases: bool) -> None:
        if not outs:
            raise ConversionError([self.refusal(call, LEAKS)])
        try:
            step, metas = self._judge(call)
        except UnstreamableError as broken:
            step, metas = self.poisoned(call, {self.refusal(call, broken.said)})
        if aliases:
            self._poison_aliases(call, outs)
        step.flows = tuple(meta if isinstance(meta, Flow) else None for meta in metas)
        self.steps.append(step)
        self._note_delay(call, metas)
        for out, meta in zip(outs, metas, strict=True):
            self.set_meta(out, meta)

    def _note_delay(self, call: Call, metas: list[Meta]) -> None:
        """Remember which calls make the stream later, by how many input items."""
        before = max((max(flow.late, 0) / flow.rate for flow in call.flows.values()), default=Fraction(0))
        after = max((meta.late / meta.rate for meta in metas if isinstance(meta, Flow)), default=before)
        if after > before:
            self.delays.append((f"{call.path or 'the model itself'}, {call.name}", after - before))

    def _judge(self, call: Call) -> Outcome:
        poisons = [meta for meta in call.metas.values() if isinstance(meta, Poison)]
        return self._judge_poisoned(call, poisons) if poisons else self._judge_sound(call)

    def _judge_poisoned(self, call: Call, poisons: list[Poison]) -> Outcome:
        """As if the inputs were sound, to find more reasons; the results are not."""
        reasons = frozenset().union(*(poison.reasons for poison in poisons))
        metas = {i: m.flow if isinstance(m, Poison) else m for i, m in call.metas.items()}
        if None in metas.values():
            return self.poisoned(call, reasons)
        states, clock = dict(self.states), self.clock
        try:
            _, found = self._judge_sound(dataclasses.replace(call, metas=metas))
        except UnstreamableError as broken:
            return self.poisoned(call, reasons | {self.refusal(call, broken.said)})
        finally:
            self.states, self.clock = states, clock
        step, _ = self.poisoned(call, reasons)
        return step, [
            Poison(meta.reasons | reasons, meta.flow) if isinstance(meta, Poison) else Poison(reasons, meta)
            for meta in found
        ]

    def _judge_sound(self, call: Call) -> Outcome:
        treatment = self.treatments.get(call.path)
        if isinstance(treatment, Twin) and call.name.endswith(".forward"):
            outcome = self.twin_rule(self, call, treatment)
            return self.by_items(call) if outcome is None else outcome
        rule = self.rules.get(call.name)
        outcome = None if rule is None else rule(self, call)
        return self.by_items(call) if outcome is None else outcome

    def poisoned(self, call: Call, reasons: set[Refusal] | frozenset[Refusal]) -> Outcome:
        """A call whose results cannot stream."""
        self.reasons |= reasons
        shapes, spec = dead_form(call.result)
        step = Dead(call.name, call.path, call.line, shapes=shapes, spec=spec, in_place=call.in_place)
        return step, [Poison(frozenset(reasons), flow) for flow in self._would_be(call)]

    def _would_be(self, call: Call) -> list[Flow | None]:
        """The flows of the results, if they were as their sizes say."""
        flows: list[Flow | None] = []
        for i, (out, layout) in enumerate(zip(call.outs, call.layouts(), strict=True)):
            if isinstance(layout, str):
                flows.append(None)
                continue
            items, axis = time_size(call, out, layout), next(a for a, f in enumerate(layout) if "T" in f)
            rate = call.slope(out.shape[axis], call.long.outs[i][axis])
            flows.append(Flow(layout, rate, items) if rate > 0 and layout[axis] == ("T",) else None)
        return flows

    def by_items(self, call: Call) -> Outcome:
        """A call that works item by item: its inputs are brought to one delay, and it runs as it is.

        Raises:
            UnstreamableError: it does not.
        """
        found = item_wise(call)
        flows = call.flows
        if len(flows) == 1 and found.q == found.m and call.name in MOVES:
            step = Step(call.name, call.path, call.line)
            (flow,) = flows.values()
            return step, [dataclasses.replace(flow, layout=layout) for layout in found.layouts]
        late, extra = self.aligned(list(flows.values()), found.q)
        fits = self.fit_all(call, dict.fromkeys(flows, (late, extra)))
        if fits and call.in_place and not call.name.startswith("__i"):
            raise UnstreamableError(
                ("writes in place into a tensor that has to wait for another one", ALIAS[1])
            )
        return Step(call.name, call.path, call.line, fits), self.after_blocks(call, found, late, extra)

    def after_blocks(self, call: Call, found: ItemWise, late: int, extra: int) -> list[Meta]:
        """The metas of the results of blocks of q items -> m items."""
        (flow, *_) = call.flows.values()
        self.need_hop(found.q, flow.rate)
        scale = Fraction(found.m, found.q)
        return [
            Flow(
                layout, flow.rate * scale, time_size(call, out, layout), int(late * scale), int(extra * scale)
            )
            for out, layout in zip(call.outs, found.layouts, strict=True)
        ]

    # --- what rules use -------------------------------------------------------------------

    def need_hop(self, q: int, rate: Fraction) -> None:
        """Every call must bring a multiple of q items at this rate.

        Raises:
            RetryError: the lengths of the present runs do not.
        """
        self.hop = math.lcm(self.hop, (q / rate).numerator, rate.denominator)
        if self.sizes.items % self.hop or self.sizes.longer % self.hop:
            raise RetryError(self.hop)

    def aligned(self, flows: list[Flow], q: int = 1) -> tuple[int, int]:
        """The least delay, a multiple of q, at which all flows are there, and the extra then."""
        late = max(flow.late for flow in flows)
        if any(flow.lead for flow in flows):
            late = max(late, 0)
        late += -late % q
        extra = min(flow.extra + late - flow.late for flow in flows)
        return late, extra - extra % q

    def fit_all(self, call: Call, wanted: Mapping[int, tuple[int, int]]) -> dict[int, Fit]:
        """The fits that bring leaves to (late, extra)."""
        fits = {i: self.fit(call, i, call.flows[i], *goal) for i, goal in wanted.items()}
        return {index: fit for index, fit in fits.items() if fit is not None}

    def fit(self, call: Call, index: int, flow: Flow, late: int, extra: int) -> Fit | None:
        """Bring one leaf to a delay and an extra; None if it is there already.

        Raises:
            UnstreamableError: time shares its axis with the batch.
        """
        return self.fit_tensor(call.leaves[index], flow, late, extra, call.path)

    def fit_tensor(self, x: Tensor, flow: Flow, late: int, extra: int, path: str) -> Fit | None:
        """The same for any tensor."""
        history = late - flow.late
        drop = flow.extra + history - extra
        masked = flow.lead > 0 and (flow.lead + flow.late > 0 or flow.fill != 0)
        if not history and not drop and not masked:
            return None
        if not rows_possible(flow.layout):
            raise UnstreamableError(MERGED)
        mask = Mask(flow.rate, late, flow.lead, flow.fill) if masked else None
        self.clock |= masked
        state = ""
        if history:
            state = self.new_state(path, "past", (history, *row_shape(x, flow.layout)), x.dtype)
        return Fit(flow.layout, flow.extra, history, state, mask, drop)

    def new_state(self, path: str, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        """A state under a name of its own."""
        if dtype.is_complex:
            raise UnstreamableError(
                ("keeps complex numbers", "keep real and imaginary part on an axis of size 2")
            )
        stem = f"{path}.{role}" if path else role
        name, number = stem, 2
        while name in self.states:
            name, number = f"{stem}{number}", number + 1
        kind = torch.float32 if dtype.is_floating_point else torch.int64
        self.states[name] = StateSpec(shape, kind)
        return name

    def refusal(self, call: Call, said: tuple[str, str]) -> Refusal:
        """The reason with its place."""
        return Refusal(call.path, call.kind, call.name, *said, line=call.line)

    def _poison_aliases(self, call: Call, outs: list[Tensor]) -> None:
        """Other tensors that share memory with one written in place no longer hold what they did."""
        target = outs[-1]
        memory = target.untyped_storage().data_ptr()
        reason = Poison(frozenset({self.refusal(call, ALIAS)}))
        for key, (reference, _) in list(self._metas.items()):
            x = reference()
            if x is None or x is target or any(x is out for out in outs):
                continue
            if x.untyped_storage().data_ptr() == memory:
                self._metas[key] = (reference, reason)


def input_layout(ndim: int, batch: int, time: int, shape: tuple[int, ...]) -> Layout:
    """The layout of the model's input: item axes of ``shape`` in the places left."""
    rest = iter(shape)
    return tuple(
        ("B",) if axis == batch else ("T",) if axis == time else (next(rest),) for axis in range(ndim)
    )
