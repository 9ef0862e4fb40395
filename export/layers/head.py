"""The last layer of a model: a linear map and an optional activation. No state."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.activation import activation_function, activation_kind
from streamssm.export.layers.base import State, StreamingLayer, require_whole
from streamssm.export.layers.embedding import Embedding


class Head(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, out].

    ``tied`` shares the weight of an :class:`Embedding` (out is then its vocabulary, and there
    is no bias). Without an activation the output is logits.
    """

    def __init__(
        self,
        d_model: int,
        out: int,
        activation: str | None = None,
        tied: Embedding | None = None,
        bias: bool = True,
    ):
        super().__init__()
        require_whole("Head", d_model=d_model, out=out)
        self.item_shape = (d_model,)
        self.function = activation_function("Head", activation)
        self.output_kind = "logits" if activation is None else activation_kind(activation)
        reference = nn.Linear(d_model, out, bias and tied is None)
        self.weight, self.bias = reference.weight, reference.bias
        if tied is not None:
            if tied.weight.shape != self.weight.shape:
                raise LayerError(
                    f"Head: the tied embedding has weight {tuple(tied.weight.shape)}, "
                    f"the head needs {tuple(self.weight.shape)}"
                )
            self.weight = tied.weight

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map, then activate."""
        state = self.start(x, state)
        y = F.linear(x, self.weight, self.bias)
        return (y if self.function is None else self.function(y)), state
