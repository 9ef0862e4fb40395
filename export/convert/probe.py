"""The runs of a model that a plan is made from: at which lengths, in which dtype, looked at how closely."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from streamssm.errors import ExportError
from streamssm.export.convert.call import Sizes
from streamssm.export.convert.flow import Flow
from streamssm.export.convert.layer import Entry, original
from streamssm.export.convert.outputs import finished
from streamssm.export.convert.plan import Plan
from streamssm.export.convert.planner import Planner, RetryError, input_layout
from streamssm.export.convert.records import Record, Recorder
from streamssm.export.convert.refusal import ConversionError, Refusal
from streamssm.export.convert.registry import find_treatments
from streamssm.export.convert.rules import RULES
from streamssm.export.convert.rules.twin import twin
from streamssm.export.convert.tracker import Rewrite, Treatment, Twin, watching
from streamssm.export.layers.base import StreamingLayer

#: input items of the first attempt: most strides divide it
FIRST_ITEMS = 96
MOST_ITEMS = 1 << 16
BATCH, WIDER = 2, 3
#: up to this many parameters the analysis and the proof run on a copy in float64
DOUBLE_PARAMETERS = 200_000_000


class Probe:
    """The model under analysis: a copy in float64, or itself where that does not run."""

    def __init__(
        self,
        model: nn.Module,
        entry: Entry,
        example: Tensor | None,
        vocabulary: int | None,
        window: int | None,
        hop: int,
        outputs: Sequence[str] | None,
    ):
        self.own, self.entry, self.window, self.hop, self.outputs = model, entry, window, hop, outputs
        self.example, self.vocabulary = example, vocabulary
        self.range = vocabulary
        if entry.dtype == torch.int64 and vocabulary is None and example is not None:
            self.range = int(example.max()) + 1
        self.model, self.double = self._copy()
        self.treatments: dict[str, Treatment] = {}
        layers = (m for m in model.modules() if isinstance(m, StreamingLayer))
        self.base = math.lcm(hop, *(layer.hop for layer in layers))

    def _copy(self) -> tuple[nn.Module, bool]:
        if sum(p.numel() for p in self.own.parameters()) > DOUBLE_PARAMETERS:
            return self.own, False
        try:
            return copy.deepcopy(self.own).double(), True
        except Exception:
            return self.own, False

    @contextlib.contextmanager
    def numbers(self) -> Iterator[None]:
        """New tensors in the probe's dtype."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if self.double else torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)

    def note(self, entry: Entry) -> tuple[str, ...]:
        """What the proof could not cover: modules whose own code does not run on this machine."""
        found = [
            f"{path}: {t.failures[0]}"
            for path, t in self.treatments.items()
            if isinstance(t, Twin) and t.failures
        ]
        try:
            entry.call(self.model, entry.given(self.input(entry, 1, next(self._lengths(self.hop)))))
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            found += [f"{path}: {said}" for path, t in self.treatments.items() if isinstance(t, Rewrite)]
        return tuple(f"not compared with its own forward, which does not run here: {one}" for one in found)

    def input(self, entry: Entry, batch: int, items: int, seed: int = 0) -> Tensor:
        """Random items [batch, items, *item_shape]."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, items, *entry.item_shape)
        if entry.dtype == torch.int64:
            return torch.randint(self.range or 2, shape, generator=generator)
        return torch.randn(shape, generator=generator)

    def plan(self) -> tuple[Plan, Entry, frozenset[str]]:
        """Find the plan, in float64 if the model runs so.

        Raises:
            ConversionError: it cannot stream.
        """
        try:
            entry = self._with_time()
        except ExportError:
            if not self.double:
                raise
            self.model, self.double = self.own, False
            torch.set_default_dtype(torch.float32)
            entry = self._with_time()
        atomic: frozenset[str] = frozenset()
        first: ConversionError | None = None
        while True:
            try:
                return self._plan_at_lengths(entry, atomic), entry, atomic
            except ConversionError as error:
                inner = {refusal.path: refusal for refusal in error.refusals}
                first = first or error
                outer = self._enclosing(inner, atomic)
                if not outer:
                    raise self._as_first_seen(error, first) from None
                atomic |= outer

    def _enclosing(self, inner: Mapping[str, Refusal], atomic: frozenset[str]) -> frozenset[str]:
        """The modules around what broke, to be looked at from outside; none if that is the model."""
        modules, found = dict(self.model.named_modules()), set()
        for start in inner:
            path = start
            while path in atomic or isinstance(modules.get(path), nn.ModuleList | nn.ModuleDict):
                path = path.rpartition(".")[0]
            if not path or path not in modules:
                return frozenset()
            found.add(path)
        return frozenset(found)

    def _as_first_seen(self, error: ConversionError, first: ConversionError) -> ConversionError:
        """The innermost place of each reason: a module looked at from outside says less."""
        refusals: set[Refusal] = set()
        for refusal in error.refusals:
            inside = [
                r for r in first.refusals if f"{r.path}.".startswith(f"{refusal.path}." * bool(refusal.path))
            ]
            refusals.update(inside or [refusal])
        return ConversionError(refusals)

    def _with_time(self) -> Entry:
        """The entry with its time axis: the only one that may change its length.

        Raises:
            ExportError: none can, or several.
        """
        treatments = find_treatments(self.model, frozenset(), self.window)
        if self.entry.time >= 0:
            self._require_runs(self.entry, treatments)
            return self.entry
        ndim = self.example.ndim
        possible, errors = [], []
        for axis in (a for a in range(ndim) if a != self.entry.batch):
            shape = tuple(s for a, s in enumerate(self.example.shape) if a not in (axis, self.entry.batch))
            entry = dataclasses.replace(self.entry, time=axis, item_shape=shape)
            try:
                self._require_runs(entry, treatments)
                possible.append(entry)
            except ExportError as error:
                errors.append(str(error))
        if len(possible) == 1:
            return possible[0]
        if possible:
            axes = ", ".join(str(entry.time) for entry in possible)
            raise ExportError(f"time may be any of the axes {axes} of the example; say which: time=")
        raise ExportError(errors[-1])

    def _require_runs(self, entry: Entry, treatments: Mapping[str, Treatment]) -> None:
        """Run once at a length that nothing else has.

        Raises:
            ExportError: the model does not take it.
        """
        error: Exception | None = None
        for items in self._lengths(self.hop):
            try:
                original(self.model, entry, self.input(entry, BATCH, items), treatments)
                return
            except Exception as found:
                if error is not None and str(error) == str(found):  # it has nothing to do with the length
                    break
                error = found
        shape = tuple(entry.given(self.input(entry, BATCH, FIRST_ITEMS)).shape)
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ExportError(
            f"the model does not run on an input such as {shape} of {entry.dtype}: {said}; give an example "
            "it takes, item_shape=, time= or hop="
        ) from error

    def _lengths(self, hop: int) -> Iterator[int]:
        """Lengths to try, multiples of the hop, growing."""
        hop = math.lcm(hop, self.base)
        least = max(FIRST_ITEMS, 12 * hop, 3 * (self.window or 0))
        items = least + -least % math.lcm(hop, FIRST_ITEMS if hop < 512 else 1)
        while items <= MOST_ITEMS:
            yield items
            items *= 4
        if self._given_items() and not self._given_items() % hop:
            yield 2 * self._given_items()

    def _given_items(self) -> int:
        """The length of the example: the user knows what the model takes."""
        time = self.entry.time
        return 0 if self.example is None or time < 0 else self.example.shape[time]

    def _longer(self, items: int, hop: int) -> int:
        """A second length, longer by a part."""
        hop = math.lcm(hop, self.base)
        given = self._given_items()
        return items + given if items == 2 * given else items + hop * max(1, items // hop // 4)

    def _plan_at_lengths(self, entry: Entry, atomic: frozenset[str]) -> Plan:
        """The plan at the first length that is long enough for the model."""
        hop = self.hop
        treatments = self.treatments = find_treatments(self.model, atomic, self.window)
        while True:
            try:
                return self._plan(entry, hop, treatments)
            except RetryError as retry:
                hop = math.lcm(hop, retry.hop)
                if hop > MOST_ITEMS // 12:
                    raise ExportError(f"the model needs {hop} items at a time, which is too many") from None

    def _plan(self, entry: Entry, hop: int, treatments: Mapping[str, Treatment]) -> Plan:
        last: Exception | None = None
        for items in self._lengths(hop):
            longer = self._longer(items, hop)
            sizes = Sizes(items, longer, BATCH, WIDER)
            try:
                long = self._record(entry, BATCH, longer, treatments)
                wide = self._record(entry, WIDER, items, treatments)
            except Exception as error:  # the user's code: perhaps it needs more items
                if last is not None and str(last) == str(error):
                    break
                last = error
                continue
            return self._analyse(entry, sizes, long, wide, treatments)
        raise ExportError(f"the model does not run: {last}; give hop=, if it takes multiples only") from last

    def _record(
        self, entry: Entry, batch: int, items: int, treatments: Mapping[str, Treatment]
    ) -> list[Record]:
        recorder = Recorder()
        with watching(self.model, recorder, treatments):
            x = entry.given(self.input(entry, batch, items)).clone()
            recorder.follow(x)
            entry.call(self.model, x)
        return recorder.records

    def _analyse(
        self,
        entry: Entry,
        sizes: Sizes,
        long: list[Record],
        wide: list[Record],
        treatments: Mapping[str, Treatment],
    ) -> Plan:
        planner = Planner(long, wide, sizes, treatments, RULES, twin, self.window)
        planner.hop = self.hop
        with watching(self.model, planner, treatments):
            x = entry.given(self.input(entry, sizes.batch, sizes.items)).clone()
            layout = input_layout(x.ndim, entry.batch, entry.time, entry.item_shape)
            if entry.dtype == torch.int64:
                planner.tokens, planner.vocabulary = x.clone(), self.vocabulary
            planner.set_meta(x, Flow(layout, Fraction(1), sizes.items))
            result = entry.call(self.model, x)
        return finished(planner, result, self.outputs)
