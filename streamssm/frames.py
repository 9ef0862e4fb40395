"""Counts results: how many frames an output has returned after so many input items."""

from __future__ import annotations

from dataclasses import dataclass

from streamssm.manifest import Manifest


@dataclass(frozen=True, slots=True)
class FrameRule:
    """One output: ``up / down`` frames for each item, the first ``warmup`` of them dropped.

    The last item of a frame, less the look-ahead, is the item it belongs to; frames that
    belong to items before the first one are the warm-up, ``floor(lookahead * ratio)``.
    """

    up: int
    down: int
    warmup: int

    def raw(self, items: int) -> int:
        """Frames that the graph has computed from ``items`` items, warm-up included."""
        return items * self.up // self.down

    def returned(self, items: int) -> int:
        """Frames that the stream has returned when the graph has run ``items`` items."""
        return max(0, self.raw(items) - self.warmup)

    def total(self, items: int) -> int:
        """Frames that a stream of ``items`` items has returned once it is flushed."""
        return -(-items * self.up // self.down)

    def cursor(self, items: int) -> int:
        """Minus the number of warm-up frames still to be dropped after ``items`` items."""
        return min(0, self.raw(items) - self.warmup)


def frame_rules(manifest: Manifest) -> tuple[FrameRule, ...]:
    """The rule of every output, in the manifest's order."""
    return tuple(
        FrameRule(*output.ratio, manifest.lookahead * output.ratio[0] // output.ratio[1])
        for output in manifest.outputs
    )
