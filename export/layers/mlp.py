"""Feed-forward blocks, named as in mamba_ssm checkpoints: gated (Shazeer 2020) and plain. No state."""

from __future__ import annotations

from torch import Tensor, nn

from streamssm.export.layers.activation import activation_function
from streamssm.export.layers.base import State, StreamingLayer, require_whole


class GatedMLP(StreamingLayer):
    """x [B, T, d_model] -> fc2(u * silu(gate)), where u and gate are the halves of fc1(x).

    ``hidden`` defaults to 8/3 d_model, rounded up to a multiple of 8: as many weights as an
    ungated block of 4 d_model. ``activation`` is that of the gate.
    """

    def __init__(self, d_model: int, hidden: int | None = None, bias: bool = False, activation: str = "silu"):
        super().__init__()
        hidden = -(-d_model // 3) * 8 if hidden is None else hidden
        require_whole("GatedMLP", d_model=d_model, hidden=hidden)
        self.item_shape = (d_model,)
        self.function = activation_function("GatedMLP", activation)
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias)
        self.fc2 = nn.Linear(hidden, d_model, bias)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Feed forward."""
        state = self.start(x, state)
        u, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(u * self.function(gate)), state


class MLP(StreamingLayer):
    """x [B, T, d_model] -> fc2(activation(fc1(x))); ``hidden`` defaults to 4 d_model."""

    def __init__(self, d_model: int, hidden: int | None = None, bias: bool = False, activation: str = "gelu"):
        super().__init__()
        hidden = 4 * d_model if hidden is None else hidden
        require_whole("MLP", d_model=d_model, hidden=hidden)
        self.item_shape = (d_model,)
        self.function = activation_function("MLP", activation)
        self.fc1 = nn.Linear(d_model, hidden, bias)
        self.fc2 = nn.Linear(hidden, d_model, bias)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Feed forward."""
        state = self.start(x, state)
        return self.fc2(self.function(self.fc1(x))), state
