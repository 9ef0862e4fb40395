"""Gated recurrent unit (Cho et al. 2014), in torch's form with the reset gate after the product."""

from __future__ import annotations

from torch import Tensor

from streamssm.export.layers.base import State, StateSpec
from streamssm.export.layers.recurrent import GatedRecurrence
from streamssm.export.ops import gru


class GRU(GatedRecurrence):
    """x [B, T, input_size] -> y [B, T, hidden_size].

    State: ``h0`` [B, hidden_size], one for each layer (``h1``, ...). Parameters as in
    :class:`torch.nn.GRU`.
    """

    gates = 3

    def state_spec(self) -> dict[str, StateSpec]:
        """The last output of each layer."""
        return {f"h{layer}": StateSpec((self.hidden_size,)) for layer in range(self.num_layers)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the layers one after another."""
        state = self.start(x, state)
        following = {}
        for layer in range(self.num_layers):
            x, following[f"h{layer}"] = gru(x, *self.layer_weights(layer), state[f"h{layer}"])
        return x, following
