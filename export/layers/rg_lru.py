"""The real-gated linear recurrent unit and the block around it (De et al. 2024: Griffin), named as in
published checkpoints.

B batch, T items, d model width, D recurrent width, H blocks of the gates, K conv width.

    i, r  = sigmoid(input gate of x), sigmoid(recurrent gate of x)      both block-diagonal
    log a = -8 r softplus(recurrent_param)
    h     = a h + m i x          m = sqrt(1 - a^2), and 1 at the first item of a stream
    y     = h
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.activation import activation_function
from streamssm.export.layers.base import (
    State,
    StateSpec,
    StreamingLayer,
    renamed,
    require_divisor,
    require_whole,
    scoped,
    with_scope,
)
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.ops import selective_scan

#: log a at r = 1 and softplus(recurrent_param) = 1
LOG_DECAY = -8.0
#: where silu is one
OPEN_GATE = 1.2784645427610738
#: below it 1 / r would overflow
LEAST_GATE = 1e-30


class RGLRU(StreamingLayer):
    """x [B, T, D] -> y [B, T, D].

    State: ``lru`` [B, 1, D], and ``position`` [B] int64, the number of items seen.

    The recurrence is the selective scan with N = 1 and its step r: decay exp(r A), inflow r times what
    is given as x, so that m i x is given divided by r. The scan takes a softplus of its step, which
    is undone before, and multiplies by silu of a gate, which is one.
    """

    def __init__(self, width: int, blocks: int = 1):
        super().__init__()
        require_whole("RGLRU", width=width, blocks=blocks)
        require_divisor("RGLRU", blocks=(blocks, width))
        self.item_shape, self.blocks = (width,), blocks
        size = width // blocks
        for gate in ("input_gate", "recurrent_gate"):
            weight = torch.randn(blocks, size, size) / math.sqrt(size)
            self.register_parameter(f"{gate}_weight", nn.Parameter(weight))
            self.register_parameter(f"{gate}_bias", nn.Parameter(torch.zeros(blocks, size)))
        # a is uniform in [0.9, 0.999] where r is one
        rate = torch.empty(width).uniform_(0.9, 0.999).log() / LOG_DECAY
        self.recurrent_param = nn.Parameter(torch.log(torch.expm1(rate)))

    def state_spec(self) -> dict[str, StateSpec]:
        """The recurrent state and the number of items."""
        return {"lru": StateSpec((1, *self.item_shape)), "position": StateSpec((), torch.int64)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Gate and recur; see the module docstring."""
        state = self.start(x, state)
        dtype, T = state["lru"].dtype, x.shape[1]
        gate = torch.sigmoid(self._gate(x, "input_gate"))
        step = torch.sigmoid(self._gate(x, "recurrent_gate").to(dtype)).clamp(min=LEAST_GATE)
        rate = LOG_DECAY * F.softplus(self.recurrent_param.to(dtype))
        seen = state["position"][:, None] + torch.arange(T, device=x.device)
        inflow = (x * gate).to(dtype) * self._normaliser(step * rate, seen) / step
        one = torch.ones_like(inflow[..., :1])
        zero = torch.zeros_like(rate)
        raw = torch.log(_expm1(step))
        open_gate = torch.full_like(inflow, OPEN_GATE)
        y, lru = selective_scan(inflow, raw, rate[None], one, one, zero, zero, open_gate, state["lru"])
        return y.to(x.dtype), {"lru": lru, "position": state["position"] + T}

    def _gate(self, x: Tensor, name: str) -> Tensor:
        """Before the sigmoid, as one matrix product for each block."""
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        y = x.unflatten(-1, (self.blocks, -1)).transpose(1, 2) @ weight
        return (y.transpose(1, 2) + bias).flatten(2)

    def _normaliser(self, log_decay: Tensor, seen: Tensor) -> Tensor:
        """m, written such that a decay next to one loses nothing in 1 - a^2."""
        t = torch.tanh(-log_decay)
        return torch.where(seen[..., None] == 0, torch.ones_like(t), torch.sqrt(2 * t / (1 + t)))


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 for x in [0, 1], to the last digits: ONNX has no such operator."""
    t = torch.tanh(x / 2)
    return 2 * t / (1 - t)


class RecurrentBlock(StreamingLayer):
    """x [B, T, d_model] -> linear_out(rg_lru(conv1d(linear_x(x))) * activation(linear_y(x))).

    State: ``conv`` [B, K-1, D], the last inputs of the convolution, and that of the recurrence under
    ``rg_lru.``. D is ``width``, d_model by default.
    """

    def __init__(
        self,
        d_model: int,
        width: int | None = None,
        blocks: int = 1,
        d_conv: int = 4,
        activation: str = "gelu_tanh",
    ):
        super().__init__()
        D = d_model if width is None else width
        require_whole("RecurrentBlock", d_model=d_model, width=D, d_conv=d_conv)
        self.item_shape = (d_model,)
        self.function = activation_function("RecurrentBlock", activation)
        self.linear_x, self.linear_y = nn.Linear(d_model, D), nn.Linear(d_model, D)
        self.conv1d = CausalConv1d(D, D, d_conv, groups=D)
        self.rg_lru = RGLRU(D, blocks)
        self.linear_out = nn.Linear(D, d_model)

    def state_spec(self) -> dict[str, StateSpec]:
        """Past of the convolution (none for d_conv = 1) and the recurrent state."""
        return renamed(self.conv1d.state_spec(), "items", "conv") | with_scope(
            self.rg_lru.state_spec(), "rg_lru"
        )

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Mix over time."""
        state = self.start(x, state)
        u, past = self.conv1d(self.linear_x(x), renamed(state, "conv", "items"))
        u, following = self.rg_lru(u, scoped(state, "rg_lru"))
        y = self.linear_out(u * self.function(self.linear_y(x)))
        return y, renamed(past, "items", "conv") | with_scope(following, "rg_lru")
