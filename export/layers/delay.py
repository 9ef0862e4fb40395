"""A delay line: the state is the line itself."""

from __future__ import annotations

import torch
from torch import Tensor

from streamssm.export.layers.base import State, StateSpec, StreamingLayer, require_whole


class Delay(StreamingLayer):
    """x [B, T, *item_shape] -> the items ``n`` before, zeros at first: y_t = x_(t-n).

    State: ``items`` [B, n, *item_shape]. Output t belongs to input item t - n, so the
    look-ahead is n.
    """

    def __init__(self, n: int, item_shape: tuple[int, ...] = ()):
        super().__init__()
        require_whole("Delay", 0, n=n)
        self.item_shape = tuple(item_shape)
        self.lookahead = n

    def state_spec(self) -> dict[str, StateSpec]:
        """The line; none when there is no delay."""
        return {"items": StateSpec((self.lookahead, *self.item_shape))} if self.lookahead else {}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Push T items in, take T items out."""
        state = self.start(x, state)
        if not self.lookahead:
            return x, state
        line = torch.cat([state["items"], x.to(state["items"].dtype)], dim=1)
        return line[:, : -self.lookahead].to(x.dtype), {"items": line[:, -self.lookahead :]}
