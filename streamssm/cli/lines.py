"""Outputs to JSON lines. What is written depends on item numbers alone, not on how pushes fell."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from streamssm import clock
from streamssm.errors import ManifestError, SnapshotError, UsageError
from streamssm.events import EventDetector
from streamssm.manifest import Manifest
from streamssm.outputs import Array, Outputs


class Lines(Protocol):
    """Makes lines from outputs, and can be saved in the middle of a stream."""

    def push(self, outputs: Outputs) -> list[bytes]:
        """The lines that these outputs complete."""

    def flush(self) -> list[bytes]:
        """The lines that the end of the stream completes."""

    def state(self) -> dict[str, Any]:
        """What is remembered, as plain data."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`; SnapshotError if it is not one."""


class EventLines:
    """A line for each start and end of the manifest's event rule."""

    def __init__(self, manifest: Manifest):
        rule = manifest.events
        if rule is None:
            raise UsageError(f"--emit events: {manifest.name} has no event rule; use --emit items")
        output = next((output for output in manifest.outputs if output.name == rule.output), None)
        if output is None:
            raise ManifestError(f"the event rule reads output {rule.output!r}, which {manifest.name} lacks")
        rate = clock.input_rate(manifest)
        self._output = output.name
        self._detector = EventDetector(rule, None if rate is None else rate * output.per_item)

    def push(self, outputs: Outputs) -> list[bytes]:
        """The events that these probabilities complete."""
        return [_encode(event) for event in self._detector.push(outputs[self._output])]

    def flush(self) -> list[bytes]:
        """The end of an open event."""
        return [_encode(event) for event in self._detector.flush()]

    def state(self) -> dict[str, Any]:
        """The detector's state."""
        return dict(self._detector.state())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of an event."""
        self._detector.restore(state)


class ItemLines:
    """A line for each output item: its time, or its number without a clock, and its values.

    Output item i of ratio a/b starts with input item i*b/a, look-ahead already taken out; that is
    its time. Outputs that start together share a line, and a line waits until every output that
    belongs on it or before it is there, so several ratios interleave the same way for every split.
    """

    def __init__(self, manifest: Manifest):
        # ticks are the common unit: 1/lcm of an input item, so that every start is a whole number
        unit = math.lcm(*(output.ratio[0] for output in manifest.outputs))
        self._steps = {o.name: o.ratio[1] * unit // o.ratio[0] for o in manifest.outputs}
        self._shortest = min(self._steps.values())
        rate = clock.input_rate(manifest)
        self._tick_rate = None if rate is None else rate * unit
        self._labels = _labels(manifest)
        self._shapes = {output.name: output.shape for output in manifest.outputs}
        self._next = dict.fromkeys(self._steps, 0)  # the tick of the first item not yet written
        self._waiting: dict[str, deque[list[Any]]] = {name: deque() for name in self._steps}

    def push(self, outputs: Outputs) -> list[bytes]:
        """The lines that these items complete."""
        for name, items in outputs.items():
            self._waiting[name].extend(_rows(items))
        return self._drain(ended=False)

    def flush(self) -> list[bytes]:
        """The lines that waited for an output which will not come."""
        return self._drain(ended=True)

    def state(self) -> dict[str, Any]:
        """Positions, and items that wait for others."""
        return {"next": self._next, "waiting": {name: list(rows) for name, rows in self._waiting.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the next item."""
        positions, waiting = state.get("next"), state.get("waiting")
        names = set(self._steps)
        if not isinstance(positions, dict) or not isinstance(waiting, dict):
            raise SnapshotError("the snapshot holds no item positions; it was saved with another --emit")
        if set(positions) != names or set(waiting) != names:
            raise SnapshotError(f"the snapshot holds outputs {sorted(positions)}, not {sorted(names)}")
        self._next = {name: int(tick) for name, tick in positions.items()}
        self._waiting = {name: deque(rows) for name, rows in waiting.items()}

    def _drain(self, ended: bool) -> list[bytes]:
        lines = []
        while (tick := self._ready(ended)) is not None:
            lines.append(self._line(tick))
        return lines

    def _ready(self, ended: bool) -> int | None:
        """The tick of the next line, if every output that could belong on it is there."""
        there = {tick for name, tick in self._next.items() if self._waiting[name]}
        missing = {tick for name, tick in self._next.items() if not self._waiting[name]}
        tick = min(there, default=None)
        if tick is None or (not ended and missing and min(missing) <= tick):
            return None
        return tick

    def _line(self, tick: int) -> bytes:
        line: dict[str, Any] = {}
        if self._tick_rate is None:
            line["index"] = tick // self._shortest
        else:
            line["time"] = clock.seconds(tick, self._tick_rate)
        for name, rows in self._waiting.items():
            if self._next[name] == tick and rows:
                self._next[name] += self._steps[name]
                line |= self._fields(name, rows.popleft())
        return _encode(line)

    def _fields(self, name: str, row: list[Any]) -> dict[str, Any]:
        if labels := self._labels[name]:
            return dict(zip(labels, row, strict=True))
        return {name: np.array(row, object).reshape(self._shapes[name]).tolist()}


def make_lines(manifest: Manifest, emit: str | None) -> Lines:
    """The lines to write: as asked, else events where the model has a rule for them, else items."""
    kind = emit or ("events" if manifest.events is not None else "items")
    return EventLines(manifest) if kind == "events" else ItemLines(manifest)


def _labels(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The keys of each output that has a label for each value; none for the others."""
    labels = {o.name: o.labels if len(o.labels) == math.prod(o.shape) else () for o in manifest.outputs}
    keys = ["time", "index", *(key for name, own in labels.items() for key in own or (name,))]
    if len(set(keys)) < len(keys):
        # a label that two outputs share, or that is a key of ours, is told apart by its output
        return {name: tuple(f"{name}.{label}" for label in own) for name, own in labels.items()}
    return labels


def _rows(items: Array) -> list[list[Any]]:
    """Each item's numbers, as the shortest decimals that read back to the same float32."""
    if not len(items):
        return []
    flat = items.reshape(len(items), -1)
    if items.dtype.kind != "f":
        plain: list[list[Any]] = flat.tolist()
        return plain
    return [[float(text) for text in row] for row in flat.astype("U32").tolist()]


def _encode(line: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"  # NaN and Inf become null: JSON has no such numbers
