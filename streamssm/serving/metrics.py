"""Counters of a server, for Prometheus.

What happens thousands of times a second is counted in plain numbers, which become metrics when somebody
asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_STEPS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Durations:
    """How many durations were at most so long, and their sum."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.total = bounds, 0.0
        self.counts = [0] * (len(bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        ends = [*(str(bound) for bound in self.bounds), "+Inf"]
        return [(end, float(sum(self.counts[: at + 1]))) for at, end in enumerate(ends)]


class ModelCounts:
    """What is counted of one model's streams."""

    def __init__(self) -> None:
        self.opened = self.items = self.rows = self.stepped = 0
        self.latency, self.steps = Durations(_SECONDS), Durations(_STEPS)

    def step(self, streams: int, seconds: float) -> None:
        """Count a step."""
        self.stepped += streams
        self.steps.add(seconds)


class Metrics:
    """In a registry of their own: several servers may live in one process. ``update`` sets the gauges."""

    def __init__(self, update: Callable[[], None]) -> None:
        self.models: dict[str, ModelCounts] = {}
        self.closed: Tally[tuple[str, str]] = Tally()  # by model and reason
        self.refused: Tally[str] = Tally()  # by HTTP status
        self.errors: Tally[str] = Tally()  # by name
        self.let_go = self.turned_away = 0
        self._update = update
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"streamssm_{name}", text, labels, registry=registry)

        self.streams = gauge("streams", "Streams that are open", "model")
        self.slots = gauge("slots", "Streams that can be open at a time", "model")
        self.waiting = gauge("waiting_items", "Items accepted and not yet run", "model")
        self.connections = gauge("connections", "Open connections")
        self.draining = gauge("draining", "1 while the server shuts down")
        registry.register(self)

    def of(self, model: str) -> ModelCounts:
        """The counts of a model."""
        return self.models.setdefault(model, ModelCounts())

    def text(self) -> bytes:
        """The exposition."""
        self._update()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The counters, for the registry."""
        models = self.models.items()
        yield _counter(
            "streams_opened", "Streams that were opened", {(n,): c.opened for n, c in models}, "model"
        )
        yield _counter("streams_closed", "Streams that ended", self.closed, "model", "reason")
        yield _counter(
            "refused", "Streams that were not opened", {(k,): v for k, v in self.refused.items()}, "status"
        )
        yield _counter("errors", "Errors told to clients", {(k,): v for k, v in self.errors.items()}, "error")
        yield _counter("items", "Items accepted", {(n,): c.items for n, c in models}, "model")
        yield _counter("rows", "Rows sent", {(n,): c.rows for n, c in models}, "model")
        yield _counter(
            "stepped_streams", "Streams run, summed over steps", {(n,): c.stepped for n, c in models}, "model"
        )
        yield _counter("connections_let_go", "Connections that asked for nothing in time", {(): self.let_go})
        yield _counter("connections_turned_away", "Connections above the limit", {(): self.turned_away})
        yield _histogram(
            "latency_seconds",
            "From the arrival of the message that completes a block to its result",
            {name: counts.latency for name, counts in models},
        )
        yield _histogram(
            "step_seconds", "Duration of a step", {name: counts.steps for name, counts in models}
        )


def _counter(name: str, text: str, values: Mapping[Any, int], *labels: str) -> Metric:
    family = CounterMetricFamily(f"streamssm_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _histogram(name: str, text: str, values: dict[str, Durations]) -> Metric:
    family = HistogramMetricFamily(f"streamssm_{name}", text, labels=["model"])
    for model, durations in values.items():
        family.add_metric([model], durations.buckets(), durations.total)
    return family
