"""A table look-up for integer items. No state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.base import State, StreamingLayer, require_whole


class Embedding(StreamingLayer):
    """x [B, T] int64 in [0, vocabulary) -> y [B, T, dim], rows of the table times ``scale``."""

    item_dtype = torch.int64

    def __init__(self, vocabulary: int, dim: int, scale: float = 1.0):
        super().__init__()
        require_whole("Embedding", vocabulary=vocabulary, dim=dim)
        self.vocabulary = vocabulary
        self.scale = scale
        # 0.02: the initial deviation of the published Mamba language models
        self.weight = nn.Parameter(torch.randn(vocabulary, dim) * 0.02)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Look the items up."""
        state = self.start(x, state)
        y = F.embedding(x, self.weight)
        return (y if self.scale == 1 else y * self.scale), state
