"""Gated feed-forward block (SwiGLU, Shazeer 2020), named as in mamba_ssm checkpoints. No state."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.base import State, StreamingLayer, require_whole


class GatedMLP(StreamingLayer):
    """x [B, T, d_model] -> fc2(u * silu(gate)), where u and gate are the halves of fc1(x).

    ``hidden`` defaults to 8/3 d_model, rounded up to a multiple of 8: as many weights as an
    ungated block of 4 d_model.
    """

    def __init__(self, d_model: int, hidden: int | None = None, bias: bool = False):
        super().__init__()
        hidden = -(-d_model // 3) * 8 if hidden is None else hidden
        require_whole("GatedMLP", d_model=d_model, hidden=hidden)
        self.item_shape = (d_model,)
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias)
        self.fc2 = nn.Linear(hidden, d_model, bias)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Feed forward."""
        state = self.start(x, state)
        u, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(u * F.silu(gate)), state
