"""Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

from __future__ import annotations

from torch import Tensor

from streamssm.export.layers.base import State, StateSpec
from streamssm.export.layers.recurrent import GatedRecurrence
from streamssm.export.ops import lstm


class LSTM(GatedRecurrence):
    """x [B, T, input_size] -> y [B, T, hidden_size].

    State: ``h0`` and ``c0`` [B, hidden_size], a pair for each layer (``h1``, ...). Parameters
    as in :class:`torch.nn.LSTM`.
    """

    gates = 4

    def state_spec(self) -> dict[str, StateSpec]:
        """The last output and the cell of each layer."""
        names = (f"{kind}{layer}" for layer in range(self.num_layers) for kind in "hc")
        return {name: StateSpec((self.hidden_size,)) for name in names}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the layers one after another."""
        state = self.start(x, state)
        following = {}
        for layer in range(self.num_layers):
            h, c = f"h{layer}", f"c{layer}"
            x, following[h], following[c] = lstm(x, *self.layer_weights(layer), state[h], state[c])
        return x, following
