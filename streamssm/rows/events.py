"""Start and end events of the manifest's rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamssm import clock
from streamssm.errors import ManifestError, UsageError
from streamssm.events import ClassDetector, EventDetector
from streamssm.manifest import Manifest
from streamssm.outputs import Outputs
from streamssm.rows.base import Column, Row


class EventRows:
    """A row for each start and end of the manifest's event rule."""

    kind = "events"

    def __init__(self, manifest: Manifest):
        rule = manifest.events
        if rule is None:
            raise UsageError(f"--emit events: {manifest.name} has no event rule; use --emit items")
        output = next((output for output in manifest.outputs if output.name == rule.output), None)
        if output is None:
            raise ManifestError(f"the event rule reads output {rule.output!r}, which {manifest.name} lacks")
        rate = clock.input_rate(manifest)
        self._output, self._per_item = output.name, output.per_item
        clocked = () if rate is None else (Column("time", "number"),)
        names = Column("event", "text"), Column("label", "text")
        self.columns = (*names, *clocked, Column("index", "integer"), Column("cut", "flag"))
        frames = None if rate is None else rate * output.per_item
        self._detector = (
            ClassDetector(rule, output.labels, frames) if rule.every else EventDetector(rule, frames)
        )

    def push(self, outputs: Outputs) -> list[Row]:
        """The events that these probabilities complete."""
        return self._detector.push(outputs[self._output])

    def flush(self) -> list[Row]:
        """The end of an open event."""
        events = self._detector.flush()
        self._detector.reset()
        return events

    def pass_over(self, items: int) -> None:
        """An open event goes on through what is missing."""
        self._detector.pass_over(int(items * self._per_item))

    def state(self) -> dict[str, Any]:
        """The detector's state."""
        return dict(self._detector.state())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of an event."""
        self._detector.restore(state)
