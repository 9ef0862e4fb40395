"""Containers: they add up ratios and look-ahead, and name the states of their children."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from fractions import Fraction

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
from streamssm.export.layers.delay import Delay


class Sequential(StreamingLayer):
    """Layers one after another, given in order or as a mapping of names to layers.

    Child ``name`` keeps its state under ``name.``; without a mapping the names are 0, 1, ...
    """

    def __init__(self, *layers: StreamingLayer | Mapping[str, StreamingLayer]):
        super().__init__()
        named = _named(layers)
        self.names = tuple(named)
        for name, layer in named.items():
            self.add_module(name, layer)
        self._set_items()
        self._set_rates()
        self._check_shapes()

    @property
    def layers(self) -> list[tuple[str, StreamingLayer]]:
        """The children with their names, in order."""
        return [(name, self.get_submodule(name)) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> StreamingLayer:
        return self.layers[index][1]

    @property
    def hop(self) -> int:
        """The shortest T that gives every child a multiple of its own hop."""
        return self._hop

    def state_spec(self) -> dict[str, StateSpec]:
        """The states of all children."""
        return joined_spec(self.layers)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the children in order."""
        state = self.start(x, state)
        following: State = {}
        for name, layer in self.layers:
            x, next_state = layer(x, scoped(state, name))
            following.update(with_scope(next_state, name))
        return x, following

    def _set_items(self) -> None:
        children = [layer for _, layer in self.layers]
        first = next((layer for layer in children if layer.item_shape is not None), children[0])
        self.item_shape = first.item_shape
        self.item_dtype, self.vocabulary = children[0].item_dtype, children[0].vocabulary
        self.output_kind = children[-1].output_kind

    def _set_rates(self) -> None:
        """Ratio is the product; look-ahead the sum, counted in items of this container's input."""
        ratio, lookahead, hop = Fraction(1), Fraction(0), 1
        for _, layer in self.layers:
            # a child needs hop * ratio to be a multiple of its own hop
            hop = math.lcm(hop, (layer.hop / ratio).numerator)
            lookahead += layer.lookahead / ratio
            ratio *= layer.output_ratio
        if lookahead.denominator > 1 or (lookahead * ratio).denominator > 1:
            raise LayerError(
                f"Sequential: the look-aheads add up to {lookahead} input items, at {ratio} output "
                "items each; choose look-aheads that add up to whole input and whole output items"
            )
        self.output_ratio, self.lookahead, self._hop = ratio, int(lookahead), hop

    def _check_shapes(self) -> None:
        shape = self.item_shape
        if shape is None:
            return
        for index, (name, layer) in enumerate(self.layers):
            if layer.item_shape is not None and tuple(layer.item_shape) != tuple(shape):
                raise LayerError(
                    f"Sequential: layer {name!r} ({type(layer).__name__}) takes items of shape "
                    f"{layer.item_shape}, but receives {shape}"
                )
            if index < len(self) - 1:
                shape = output_shape(layer, shape)


def _named(layers: tuple) -> dict[str, StreamingLayer]:
    if len(layers) == 1 and isinstance(layers[0], Mapping):
        named = dict(layers[0])
    else:
        named = {str(index): layer for index, layer in enumerate(layers)}
    if not named:
        raise LayerError("Sequential: give at least one layer")
    for name, layer in named.items():
        if not isinstance(layer, StreamingLayer):
            raise LayerError(f"Sequential: layer {name!r} is a {type(layer).__name__}, not a StreamingLayer")
        if "." in name or keyword.iskeyword(name):  # torch cannot trace a module of such a name
            raise LayerError(f"Sequential: {name!r} cannot name a layer; use no dot and no Python keyword")
    return named


class Residual(StreamingLayer):
    """x + layer(x), where the skip waits for the layer's look-ahead.

    States: those of the layer under ``layer.``, the delay line under ``skip.``.
    """

    def __init__(self, layer: StreamingLayer):
        super().__init__()
        if layer.output_ratio != 1:
            raise LayerError(
                f"Residual: {type(layer).__name__} gives {layer.output_ratio} items for each input item; "
                "a skip needs a ratio of 1"
            )
        self.item_shape, self.item_dtype = layer.item_shape, layer.item_dtype
        self.lookahead = layer.lookahead
        if self.item_shape is None and self.lookahead:
            raise LayerError(f"Residual: {type(layer).__name__} looks ahead but does not say its item_shape")
        if self.item_shape is not None:
            shape = output_shape(layer, self.item_shape)
            if shape != tuple(self.item_shape):
                raise LayerError(f"Residual: items of shape {self.item_shape} cannot be added to {shape}")
        self.layer = layer
        self.skip = Delay(self.lookahead, self.item_shape or ())
        if not self.lookahead:
            self.skip.item_shape = self.item_shape

    @property
    def hop(self) -> int:
        """That of the layer."""
        return self.layer.hop

    def state_spec(self) -> dict[str, StateSpec]:
        """The layer's states and the delay line."""
        return with_scope(self.layer.state_spec(), "layer") | with_scope(self.skip.state_spec(), "skip")

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Add the delayed input to the output."""
        state = self.start(x, state)
        y, layer_state = self.layer(x, scoped(state, "layer"))
        skip, skip_state = self.skip(x, scoped(state, "skip"))
        return skip + y, with_scope(layer_state, "layer") | with_scope(skip_state, "skip")
