"""Layer normalisation (Ba et al. 2016) of each item. No state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.base import State, StreamingLayer, require_whole


class LayerNorm(StreamingLayer):
    """x [B, T, dim] -> (x - mean) / sqrt(variance + eps) * weight + bias, over dim."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        require_whole("LayerNorm", dim=dim)
        self.item_shape = (dim,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Normalise each item."""
        state = self.start(x, state)
        return F.layer_norm(x, self.item_shape, self.weight, self.bias, self.eps), state
