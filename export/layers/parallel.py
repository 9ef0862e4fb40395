"""Layers side by side on the same input, their outputs added: Falcon-H1 mixes with a Mamba-2 and
with attention at once, GraniteMoeHybrid feeds forward through experts and a shared MLP."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import (
    State,
    StateSpec,
    StreamingLayer,
    joined_spec,
    scoped,
    with_scope,
)


class Parallel(StreamingLayer):
    """x [B, T, *item_shape] -> the sum of what each layer makes of x.

    States: those of each layer under its name.
    """

    def __init__(self, layers: Mapping[str, StreamingLayer]):
        super().__init__()
        if not layers:
            raise LayerError("Parallel: give at least one layer")
        first = next(iter(layers.values()))
        for name, layer in layers.items():
            _check_fits(name, layer, first)
        self.item_shape, self.item_dtype = first.item_shape, first.item_dtype
        self.output_ratio, self.lookahead = first.output_ratio, first.lookahead
        self.layers = nn.ModuleDict(layers)

    @property
    def hop(self) -> int:
        """The shortest T that is a multiple of every layer's hop."""
        return math.lcm(*(layer.hop for layer in self.layers.values()))

    def state_spec(self) -> dict[str, StateSpec]:
        """The states of all layers."""
        return joined_spec(self.layers.items())

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Add the outputs in order."""
        state = self.start(x, state)
        total: Tensor | None = None
        following: State = {}
        for name, layer in self.layers.items():
            y, next_state = layer(x, scoped(state, name))
            total = y if total is None else total + y
            following.update(with_scope(next_state, name))
        return total, following


def _check_fits(name: str, layer: StreamingLayer, first: StreamingLayer) -> None:
    """What must agree for outputs to be added: items, ratio and look-ahead."""
    seen = (layer.item_shape, layer.output_ratio, layer.lookahead)
    wanted = (first.item_shape, first.output_ratio, first.lookahead)
    if seen != wanted:
        words = "items of shape {}, a ratio of {} and a look-ahead of {}"
        raise LayerError(
            f"Parallel: {name!r} has {words.format(*seen)}, the first layer {words.format(*wanted)}; "
            "their outputs can only be added where these agree"
        )
