"""Scalar items as items of one channel. No state."""

from __future__ import annotations

from torch import Tensor

from streamssm.export.layers.base import State, StreamingLayer


class Channel(StreamingLayer):
    """x [B, T] -> y [B, T, 1]: what a convolution over raw samples takes."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Add the axis."""
        state = self.start(x, state)
        return x[..., None], state
