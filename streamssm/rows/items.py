"""Every output item as a row."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamssm import clock
from streamssm.errors import SnapshotError
from streamssm.manifest import Manifest
from streamssm.outputs import Array, Outputs
from streamssm.rows.base import Column, Row

_OURS = ("time", "index", "record", "gap", "items", "seconds")  # keys that rows have for other reasons


class ItemRows:
    """A row for each output item: its time, or its number without a clock, and its values.

    Output item i of ratio a/b starts with input item i*b/a, look-ahead already taken out; that is
    its time. Outputs that start together share a row, and a row waits until every output that
    belongs in it or before it is there, so several ratios interleave the same way for every split.
    """

    kind = "items"

    def __init__(self, manifest: Manifest):
        # ticks are the common unit: 1/lcm of an input item, so that every start is a whole number
        self._unit = unit = math.lcm(*(output.ratio[0] for output in manifest.outputs))
        self._steps = {o.name: o.ratio[1] * unit // o.ratio[0] for o in manifest.outputs}
        self._shortest = min(self._steps.values())
        rate = clock.input_rate(manifest)
        self._tick_rate = None if rate is None else rate * unit
        self._labels = _labels(manifest)
        self._shapes = {output.name: output.shape for output in manifest.outputs}
        self._next = dict.fromkeys(self._steps, 0)  # the tick of the first item not yet written
        self._waiting: dict[str, deque[list[Any]]] = {name: deque() for name in self._steps}

    @property
    def columns(self) -> list[Column]:
        """Where an item starts, and a column for each label, or for an output without labels."""
        where = Column("index", "integer") if self._tick_rate is None else Column("time", "number")
        values = []
        for name, labels in self._labels.items():
            values += [Column(label, "value") for label in labels] or [
                Column(_key(name), "value", self._shapes[name])
            ]
        return [where, *values]

    def push(self, outputs: Outputs) -> list[Row]:
        """The rows that these items complete."""
        for name, items in outputs.items():
            self._waiting[name].extend(_rows(items))
        return self._drain(ended=False)

    def flush(self) -> list[Row]:
        """The rows that waited for an output which will not come."""
        rows = self._drain(ended=True)
        self._next = dict.fromkeys(self._steps, 0)
        return rows

    def pass_over(self, items: int) -> None:
        """Rows for what is missing are left out."""
        self._next = {name: tick + items * self._unit for name, tick in self._next.items()}

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

    def _drain(self, ended: bool) -> list[Row]:
        rows = []
        while (tick := self._ready(ended)) is not None:
            rows.append(self._row(tick))
        return rows

    def _ready(self, ended: bool) -> int | None:
        """The tick of the next row, if every output that could belong in it is there."""
        there = {tick for name, tick in self._next.items() if self._waiting[name]}
        missing = {tick for name, tick in self._next.items() if not self._waiting[name]}
        tick = min(there, default=None)
        if tick is None or (not ended and missing and min(missing) <= tick):
            return None
        return tick

    def _row(self, tick: int) -> Row:
        row: Row = {}
        if self._tick_rate is None:
            row["index"] = tick // self._shortest
        else:
            row["time"] = clock.seconds(tick, self._tick_rate)
        for name, waiting in self._waiting.items():
            if self._next[name] == tick and waiting:
                self._next[name] += self._steps[name]
                row |= self._fields(name, waiting.popleft())
        return row

    def _fields(self, name: str, row: list[Any]) -> dict[str, Any]:
        if labels := self._labels[name]:
            return dict(zip(labels, row, strict=True))
        return {_key(name): np.array(row, object).reshape(self._shapes[name]).tolist()}


def _labels(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The keys of each output that has a label for each value; none for the others."""
    labels = {o.name: o.labels if len(o.labels) == math.prod(o.shape) else () for o in manifest.outputs}
    keys = [*_OURS, *(key for name, own in labels.items() for key in own or (_key(name),))]
    if len(set(keys)) < len(keys):
        # a label that two outputs share, or that is a key of ours, is told apart by its output
        return {name: tuple(f"{name}.{label}" for label in own) for name, own in labels.items()}
    return labels


def _key(output: str) -> str:
    """The key of an output without labels."""
    return f"output.{output}" if output in _OURS else output


def _rows(items: Array) -> list[list[Any]]:
    """Each item's numbers, as the shortest decimals that read back to the same float32."""
    if not len(items):
        return []
    flat = items.reshape(len(items), -1)
    if items.dtype.kind != "f":
        plain: list[list[Any]] = flat.tolist()
        return plain
    return [[float(text) for text in row] for row in flat.astype("U32").tolist()]
