"""A stack some of whose blocks also see what came into the stack: Zamba and Zamba2 let a shared
attention block read the hidden items beside the embeddings (Glorioso et al. 2024).

d is the width of the stack, e the item that came into it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.layers.base import (
    State,
    StateSpec,
    StreamingLayer,
    joined_spec,
    output_shape,
    scoped,
    with_scope,
)
from streamssm.export.layers.stack import Stack


class ConcatBlock(StreamingLayer):
    """[x, e] [B, T, 2 d] -> x + mixer(norm(x + side([x, e]))) [B, T, d].

    ``side`` maps 2 d channels to d. Several blocks may have the same module for it, or for parts of
    it: each use has its own state. States: ``side.*`` and ``mixer.*``.
    """

    def __init__(self, side: StreamingLayer, norm: StreamingLayer, mixer: StreamingLayer):
        super().__init__()
        (d,) = mixer.item_shape
        if tuple(side.item_shape) != (2 * d,) or output_shape(side, (2 * d,)) != (d,):
            raise LayerError(
                f"ConcatBlock: side takes items of shape {side.item_shape}, beside a mixer of width {d}; "
                f"it must map {2 * d} channels to {d}"
            )
        self.item_shape, self.width = (2 * d,), d
        self.side, self.norm, self.mixer = side, norm, mixer

    def state_spec(self) -> dict[str, StateSpec]:
        """The states of both layers."""
        return joined_spec([("side", self.side), ("mixer", self.mixer)])

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Attend, then mix; the skip is around both and takes x alone."""
        state = self.start(x, state)
        y, side_state = self.side(x, scoped(state, "side"))
        x = x[..., : self.width]
        y, mixer_state = self.mixer(self.norm(x + y)[0], scoped(state, "mixer"))
        return x + y, with_scope(side_state, "side") | with_scope(mixer_state, "mixer")


class ConcatStack(Stack):
    """A :class:`Stack` whose blocks of twice its width see each item beside the stack's own input."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the blocks and the last norm."""
        state = self.start(x, state)
        embedded = x
        following: State = {}
        for index, block in enumerate(self.layers):
            seen = torch.cat([x, embedded], dim=-1) if block.item_shape != self.item_shape else x
            x, next_state = block(seen, scoped(state, f"layers.{index}"))
            following.update(with_scope(next_state, f"layers.{index}"))
        return self.norm_f(x)[0], following
