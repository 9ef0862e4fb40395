"""How long a step takes on a machine, from what the model costs and what the machine can do.

A stage takes as long as its slowest part: bytes over bandwidth, operations over arithmetic, exponentials or
updates of states over their rate; and a start. Figures of machines are published (``targets.py``) or
measured on the spot (``probe.py``); which fraction of them a runtime of ours reaches was fitted once to
steps measured on an H100 and on one AVX-512 core: ``python benchmarks/plan.py`` shows how well they are
met, and ``--fit`` fits them again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from streamssm.tensorrt.costs import Costs, Stage
from streamssm.tensorrt.targets import Device

BITS = {"fp32": 32, "fp16": 16, "bf16": 16}


@dataclass(frozen=True)
class Call:
    """A step: ``rows`` streams, ``items`` of each; what comes out of the head for the ``last`` item only, or
    for each; whether input and output cross from and to the ``host``; whether neighbouring operations are
    ``fused`` and a step of one item may be one launch."""

    rows: int = 1
    items: int = 1
    precision: str = "fp32"
    last: bool = False
    host: bool = True
    fused: bool = True


@dataclass
class Estimate:
    """Seconds of a step, and what they go to: weights, states, values (what passes between stages),
    arithmetic, exponentials, updates, starts, host."""

    terms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return math.fsum(self.terms.values())

    @property
    def bound(self) -> str:
        """The largest term."""
        return max(self.terms, key=lambda name: self.terms[name]) if self.terms else "nothing"


class Machine(Protocol):
    """What a plan is made for."""

    def step(self, costs: Costs, call: Call) -> Estimate:
        """The time of a step."""


@dataclass(frozen=True)
class GpuRates:
    """What a GPU reaches.

    ``start``: seconds of a kernel beside its work, at the clock of an H100; ``rows``: the same, a stage, of
    the kernels for one item of many rows; ``weights`` and ``values``: fractions of the bandwidth, for what
    is read once and for what passes between kernels; ``product``: fraction of the arithmetic; ``scan`` and
    ``dual``: exponentials, and updated elements of the state, for a multiprocessor and cycle; ``single``:
    fraction of the bandwidth in steps of one launch.
    """

    start: float
    rows: float
    weights: float
    values: float
    product: float
    scan: float
    dual: float
    single: float


#: fitted to benchmarks/results/gpu.json: see benchmarks/plan.py
H100_RATES = GpuRates(
    start=3.31e-06,
    rows=1.35e-06,
    weights=0.798,
    values=0.828,
    product=0.65,
    scan=9.89,
    dual=24.9,
    single=0.491,
)
H100_CLOCK = 1.98e9
#: what pinned memory is copied at over PCIe 4 x16, and what a call with a wait costs the host beside that
_BUS, _WAIT = 25e9, 15e-6
#: the first compute capability with clusters of blocks, which the one-launch steps need
_CLUSTERS = 90


@dataclass(frozen=True)
class Gpu:
    """A GPU of which figures are published, with our kernels; ``whole``: with those for whole blocks, one
    launch for one row, which only ``backend="cuda"`` has."""

    device: Device
    rates: GpuRates = H100_RATES
    whole: bool = False

    def step(self, costs: Costs, call: Call) -> Estimate:
        """The time of a step."""
        if self._whole(call) and call.rows == 1:
            found = self._single(costs, call)
        else:
            found = Estimate()
            for stage in costs.stages:
                self._add(found, stage, call)
        if call.host:
            found.terms["host"] += _WAIT + self._crossing(costs, call)
        return found

    def _whole(self, call: Call) -> bool:
        """Whether the kernels for whole blocks run: one item of each row, weights of 16 bits."""
        fits = self.device.sm >= _CLUSTERS and call.precision != "fp32"
        return self.whole and fits and call.fused and call.items == 1

    def _single(self, costs: Costs, call: Call) -> Estimate:
        """All of it as one launch, as fast as memory gives it."""
        speed = self.device.bandwidth * self.rates.single
        weights = costs.sum(lambda stage: stage.weights(BITS[call.precision])) / speed
        found = Estimate()
        found.terms |= {"weights": weights, "states": 2 * costs.state / speed}
        return found

    def _add(self, found: Estimate, stage: Stage, call: Call) -> None:
        items = _items(stage, call)
        memory = {
            "weights": stage.weights(BITS[call.precision]) / self._speed(self.rates.weights),
            "states": 2 * stage.state * call.rows / self._speed(self.rates.weights),
            "values": _traffic(stage, call, items) / self._speed(self.rates.values),
        }
        work = {
            "arithmetic": stage.operations * items / (self._compute(stage, call) * self.rates.product),
            "exponentials": stage.exponentials * items / self._cycles(self.rates.scan),
            "updates": stage.updates * items / self._cycles(self.rates.dual),
        }
        kernels = stage.nodes if not call.fused else 1
        start = self.rates.rows if self._whole(call) else self.rates.start
        _count(found.terms, memory, work, kernels * start * H100_CLOCK / self.device.clock)

    def _speed(self, fraction: float) -> float:
        return self.device.bandwidth * fraction

    def _cycles(self, each: float) -> float:
        return each * self.device.multiprocessors * self.device.clock

    def _compute(self, stage: Stage, call: Call) -> float:
        # only products run on tensor cores
        dtype = "float16" if stage.kind == "product" and call.precision != "fp32" else "float32"
        return self.device.compute(dtype)

    def _crossing(self, costs: Costs, call: Call) -> float:
        speed = self.device.bandwidth if self.device.shared else _BUS
        return (costs.input + costs.output) * call.rows * call.items / speed


@dataclass(frozen=True)
class CoreRates:
    """What one core reaches with the native kernels.

    ``call`` and ``start``: seconds of a call and of a stage; ``cached``: bandwidth of the cache over that of
    memory; ``product``: arithmetic over that of a large float32 product, by bits of the weights; ``single``:
    the same for one row, over that of many; ``scan`` and ``dual``: operations of a large product that an
    exponential, or an updated element of the state, costs; ``values``: bytes a second, over the bandwidth of
    memory, at which values pass between stages.
    """

    call: float
    start: float
    cached: float
    product: Mapping[int, float]
    single: float
    scan: float
    dual: float
    values: float


#: fitted to benchmarks/results/peers.json: see benchmarks/plan.py
CORE_RATES = CoreRates(
    call=2.44e-06,
    start=6.17e-08,
    cached=2.27,
    product={32: 0.889, 8: 2.26, 4: 2.6},
    single=0.324,
    scan=23.1,
    dual=7.26,
    values=0.556,
)


@dataclass(frozen=True)
class Core:
    """One core: bytes it reads a second beyond its cache, float32 operations a second in a large product,
    and the bytes of cache that weights may stay in."""

    bandwidth: float
    arithmetic: float
    cache: float = 4 << 20
    rates: CoreRates = CORE_RATES

    def step(self, costs: Costs, call: Call) -> Estimate:
        """The time of a step; weights stay as they are stored, whatever the precision asked for."""
        found = Estimate()
        found.terms["host"] = self.rates.call
        kept = costs.sum(lambda stage: stage.weights()) + 2 * costs.state * call.rows
        speed = self.bandwidth * (self.rates.cached if kept <= self.cache else 1.0)
        for stage in costs.stages:
            self._add(found, stage, call, speed)
        return found

    def _add(self, found: Estimate, stage: Stage, call: Call, speed: float) -> None:
        items, rates = _items(stage, call), self.rates
        memory = {
            "weights": stage.weights() / speed,
            "states": 2 * stage.state * call.rows / speed,
            "values": 4 * stage.values * items / (self.bandwidth * rates.values),
        }
        gain = rates.product[4 if stage.bits < 6 else 8 if stage.bits < 16 else 32]
        gain *= 1.0 if items > 1 or stage.bits == 32 else rates.single
        work = {
            "arithmetic": stage.operations * items / (self.arithmetic * gain) * (stage.kind == "product"),
            "exponentials": stage.exponentials * items * rates.scan / self.arithmetic,
            "updates": stage.updates * items * rates.dual / self.arithmetic,
        }
        _count(found.terms, memory, work, rates.start, overlap=math.hypot)


def _items(stage: Stage, call: Call) -> float:
    """Items of all rows that a stage works on."""
    return float(call.rows if stage.last and call.last else call.rows * call.items)


def _traffic(stage: Stage, call: Call, items: float) -> float:
    """Bytes that pass between this stage and others; of a run that is not fused, within it too."""
    each = 4 if call.precision == "fp32" else 2
    passes = 1.0 if call.fused or stage.kind != "pointwise" else max(1.0, stage.nodes / 2)
    return each * stage.values * items * passes


def _count(
    terms: defaultdict[str, float],
    memory: Mapping[str, float],
    work: Mapping[str, float],
    start: float,
    overlap: Callable[[float, float], float] = max,
) -> None:
    """Add a stage: what is slower of memory and work, under the names of its parts."""
    moved, worked = sum(memory.values()), sum(work.values())
    total = overlap(moved, worked)
    slower, whole = (memory, moved) if moved >= worked else (work, worked)
    for name, seconds in slower.items():
        if seconds:
            terms[name] += seconds / whole * total
    terms["starts"] += start
