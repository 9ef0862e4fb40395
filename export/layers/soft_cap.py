"""Logits kept within bounds, smoothly. No state."""

from __future__ import annotations

import torch
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StreamingLayer


class SoftCap(StreamingLayer):
    """x [B, T, ...] -> cap tanh(x / cap), of the same shape."""

    item_shape = None
    output_kind = "logits"

    def __init__(self, cap: float):
        super().__init__()
        if not cap > 0:
            raise LayerError(f"SoftCap: cap = {cap} must be positive")
        self.cap = cap

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Apply the function."""
        state = self.start(x, state)
        return self.cap * torch.tanh(x / self.cap), state
