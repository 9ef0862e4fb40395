"""Several results from one input: the last layer of a model with more than one output."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, joined_spec, scoped, with_scope


class Heads(StreamingLayer):
    """x -> a dictionary with the result of each layer, under its name.

    All layers take the same items, at the same ratio and look-ahead, so that results of one
    call belong to the same input items. States: those of layer ``name`` under ``name.``.
    """

    def __init__(self, layers: Mapping[str, StreamingLayer]):
        super().__init__()
        if not layers:
            raise LayerError("Heads: give at least one layer")
        first_name, first = next(iter(layers.items()))
        for name, layer in layers.items():
            for field in ("item_shape", "item_dtype", "output_ratio", "lookahead", "hop"):
                if getattr(layer, field) != getattr(first, field):
                    raise LayerError(
                        f"Heads: {field} of {name!r} is {getattr(layer, field)}, "
                        f"that of {first_name!r} is {getattr(first, field)}; they must agree"
                    )
        self.names = tuple(layers)
        # a list: torch's tracer cannot hold a module whose name is a Python keyword, such as "class"
        self.layers = nn.ModuleList(layers.values())
        self.item_shape, self.item_dtype = first.item_shape, first.item_dtype
        self.output_ratio, self.lookahead = first.output_ratio, first.lookahead
        self._hop = first.hop

    @property
    def hop(self) -> int:
        """That of the layers."""
        return self._hop

    def state_spec(self) -> dict[str, StateSpec]:
        """The states of all layers."""
        return joined_spec(zip(self.names, self.layers, strict=True))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[dict[str, Tensor], State]:
        """Run each layer on x."""
        state = self.start(x, state)
        results: dict[str, Tensor] = {}
        following: State = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            results[name], next_state = layer(x, scoped(state, name))
            following.update(with_scope(next_state, name))
        return results, following
