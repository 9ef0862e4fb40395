"""What a device will do with a model, before it is bought: step time, streams, memory, what bounds it.

Everything follows from the model's graph (``costs.py``), published figures of the device (``targets.py``)
and the fractions of them that our kernels reached where they could be measured (``estimate.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamssm.errors import UsageError
from streamssm.tensorrt.costs import Costs, costs_of
from streamssm.tensorrt.estimate import BITS, Call, Estimate, Gpu, Machine
from streamssm.tensorrt.targets import DEVICES, TARGETS, Device, find_device

if TYPE_CHECKING:
    from streamssm.onnx_file import ModelFile

LOCAL_CPU = "local-cpu"
#: how much of the time between two blocks a step may take: the rest is for what is late
LOAD = 0.8
#: no plan looks for more streams than this
MOST_STREAMS = 1 << 17
#: the part of a device's memory that is left to us; the rest is the system's, CUDA's and TensorRT's
_USABLE = {True: 0.7, False: 0.9}
#: states are read on one side and written on the other
_SIDES = 2


@dataclass(frozen=True)
class Plan:
    """A plan for ``streams`` streams that are stepped together, ``items`` input items of each.

    ``seconds`` is the time of a step and ``terms`` what it goes to; ``period`` the time between two steps
    (None without a clock). ``most`` are the streams that are served in time and fit in memory, and
    ``limit`` says what ends them. ``weights``, ``states`` and ``values`` are bytes of memory for ``streams``
    streams, ``memory`` what the device has (None: not looked at).
    """

    model: str
    target: str
    title: str
    precision: str
    streams: int
    items: int
    period: float | None
    seconds: float
    terms: Mapping[str, float]
    bound: str
    most: int
    limit: str
    weights: int
    states: int
    values: int
    memory: int | None
    operations: float
    traffic: float
    unknown: Mapping[str, int]
    sources: Sequence[str]
    notes: Sequence[str]

    @property
    def load(self) -> float | None:
        """The part of the time that a step takes."""
        return None if self.period is None else self.seconds / self.period

    @property
    def bytes(self) -> int:
        """Of memory, for everything that is ours."""
        return self.weights + self.states + self.values


def names() -> Sequence[str]:
    """What a plan can be made for."""
    return (*dict.fromkeys([*TARGETS, *DEVICES]), LOCAL_CPU)


def make_plan(
    file: ModelFile,
    target: str,
    streams: int = 1,
    items: int | None = None,
    precision: str = "fp32",
) -> Plan:
    """A plan for a model file.

    ``target`` is one of :func:`names`; ``items`` the input items of a step (default: the model's block);
    ``precision`` that of the products' weights, "fp32", "fp16" or "bf16".

    Raises:
        UsageError: there is no such target or precision, or ``items`` or ``streams`` is out of range.
        BackendError: this core is asked for, and onnxruntime is not usable.
    """
    spec = file.manifest.input
    count = file.manifest.block if items is None else items
    if count < 1 or count % spec.hop:
        raise UsageError(f"a step of {count} items is not a positive multiple of the hop of {spec.hop}")
    if not 1 <= streams <= MOST_STREAMS:
        raise UsageError(f"{streams} streams cannot be planned; give 1 to {MOST_STREAMS}")
    if precision not in BITS:
        raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(BITS)}")
    planner = _Planner(file, costs_of(file), target, count, precision)
    return planner.plan(streams)


class _Planner:
    """One model on one machine."""

    def __init__(self, file: ModelFile, costs: Costs, target: str, items: int, precision: str) -> None:
        self.file, self.costs, self.target = file, costs, target
        self.items, self.precision = items, precision
        self.device = None if target == LOCAL_CPU else find_device(target)
        self.machine = _machine(self.device)
        rate = file.manifest.input.rate
        self.period = None if rate is None else items / rate

    def plan(self, streams: int) -> Plan:
        found = self.step(streams)
        most, limit = self.most()
        weights, states, values = self.memory(streams)
        device, rows = self.device, streams * self.items
        return Plan(
            model=self.file.manifest.name,
            target=self.target,
            title="one core of this machine" if device is None else device.title,
            precision=self.precision if device is not None else "as stored",
            streams=streams,
            items=self.items,
            period=self.period,
            seconds=found.seconds,
            terms=dict(found.terms),
            bound=found.bound,
            most=most,
            limit=limit,
            weights=weights,
            states=states,
            values=values,
            memory=None if device is None else device.memory,
            operations=self.costs.sum(lambda stage: stage.operations) * rows,
            traffic=self.traffic(streams),
            unknown=self.costs.unknown,
            sources=() if device is None else device.sources,
            notes=tuple(_notes(self.file, device)),
        )

    def step(self, streams: int) -> Estimate:
        return self.machine.step(self.costs, Call(streams, self.items, self.precision))

    def memory(self, streams: int) -> tuple[int, int, int]:
        """Bytes of weights, states and values."""
        bits = BITS[self.precision]
        weights = self.costs.stored
        if self.device is not None:
            weights = int(weights * bits / 32 if self._plain() else weights)
        widest = max((stage.values for stage in self.costs.stages), default=0.0)
        values = int(streams * self.items * (widest * bits / 8 + self.costs.input + self.costs.output))
        sides = 1 if self.device is None else _SIDES
        return weights, sides * self.costs.state * streams, values

    def traffic(self, streams: int) -> float:
        """Bytes of a step: weights, but not tables of which rows are looked up, and states in and out."""
        bits = None if self.device is None else BITS[self.precision]
        return self.costs.sum(lambda stage: stage.weights(bits)) + 2.0 * self.costs.state * streams

    def _plain(self) -> bool:
        return self.file.manifest.weights.dtype == "float32"

    def most(self) -> tuple[int, str]:
        """How many streams are served in time and fit, and what ends them."""
        if not self._fits(1):
            return 0, "memory" if self._too_large(1) else "time"
        low, high = 1, 2
        while high <= MOST_STREAMS and self._fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle)
        if high > MOST_STREAMS:
            return low, "nothing up to here"
        return low, "memory" if self._too_large(low + 1) else f"time, bound by {self.step(low + 1).bound}"

    def _fits(self, streams: int) -> bool:
        late = self.period is not None and self.step(streams).seconds > LOAD * self.period
        return not late and not self._too_large(streams)

    def _too_large(self, streams: int) -> bool:
        if self.device is None:
            return False
        return sum(self.memory(streams)) > _USABLE[self.device.shared] * self.device.memory


def _machine(device: Device | None) -> Machine:
    if device is None:
        from streamssm.tensorrt.probe import this_core

        return this_core()
    return Gpu(device)


def _notes(file: ModelFile, device: Device | None) -> list[str]:
    """What a reader has to know about the figures."""
    if device is None:
        return ["the core was measured just now; with native kernels, one thread"]
    notes = ["the device is taken at its published figures, in its highest power mode"]
    if device.name != "h100":
        notes.append("steps were measured on an H100 and on a processor's core, never on this device")
    if device.sm in (86, 89, 120):
        notes.append("engines of TensorRT-RTX run without our kernels: expect more time than this")
    if file.manifest.weights.dtype != "float32":
        notes.append(f"weights stay {file.manifest.weights.dtype}")
    return notes
