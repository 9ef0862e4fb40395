"""A linear map of each item. No state."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.base import State, StreamingLayer, require_whole


class Linear(StreamingLayer):
    """x [B, T, in] -> y [B, T, out], with the parameters of :class:`torch.nn.Linear`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        require_whole("Linear", in_features=in_features, out_features=out_features)
        self.item_shape = (in_features,)
        reference = nn.Linear(in_features, out_features, bias)
        self.weight, self.bias = reference.weight, reference.bias

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Apply the map."""
        state = self.start(x, state)
        return F.linear(x, self.weight, self.bias), state
