"""The attention of mamba_ssm's hybrids, named as in its checkpoints: one projection for query, key
and value, a short convolution over all three, and a gated MLP beside the heads if there is one.

B batch, T items, W window, Hq query heads, Hkv key/value heads, dh head dim, K conv width, M hidden
channels of the MLP.

    qkv, u, gate = in_proj(x)                             (Hq + 2 Hkv) dh, M, M
    q, k, v      = conv1d(qkv)                            depthwise, causal, no activation
    out          = out_proj([attention(q, k, v), u silu(gate)])
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.attention import frequencies
from streamssm.export.layers.base import (
    State,
    StateSpec,
    StreamingLayer,
    renamed,
    require_divisor,
    require_whole,
)
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.ops import sliding_window_attention


class ConvAttention(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model].

    State: ``conv`` [B, K-1, (Hq + 2 Hkv) dh] (none for ``d_conv`` of 0 or 1), and ``key``, ``value``
    and ``position`` of the window. ``rotary_dim=0`` means no positions.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        window: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        d_conv: int = 0,
        rotary_dim: int = 0,
        rope_base: float = 10000.0,
        hidden: int = 0,
        bias: bool = True,
        out_bias: bool = True,
        scale: float | None = None,
    ):
        super().__init__()
        name = "ConvAttention"
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        require_whole(name, d_model=d_model, num_heads=num_heads, window=window, num_kv_heads=kv_heads)
        require_whole(name, 0, d_conv=d_conv, rotary_dim=rotary_dim, hidden=hidden)
        require_divisor(name, num_kv_heads=(kv_heads, num_heads))
        if head_dim is None:
            require_divisor(name, num_heads=(num_heads, d_model))
            head_dim = d_model // num_heads
        require_whole(name, head_dim=head_dim)
        self.item_shape = (d_model,)
        self.num_heads, self.num_kv_heads, self.head_dim, self.window = num_heads, kv_heads, head_dim, window
        self.hidden, self.scale = hidden, 1 / math.sqrt(head_dim) if scale is None else float(scale)
        self.register_constant("inv_freq", frequencies(head_dim, rotary_dim, rope_base))
        mixed = (num_heads + 2 * kv_heads) * head_dim
        self.in_proj = nn.Linear(d_model, mixed + 2 * hidden, bias)
        self.conv1d = CausalConv1d(mixed, mixed, d_conv, groups=mixed) if d_conv else None
        self.out_proj = nn.Linear(num_heads * head_dim + hidden, d_model, out_bias)

    def state_spec(self) -> dict[str, StateSpec]:
        """Past of the convolution, two rings and a position."""
        ring = StateSpec((self.num_kv_heads, self.window, self.head_dim))
        past = {} if self.conv1d is None else renamed(self.conv1d.state_spec(), "items", "conv")
        return past | {"key": ring, "value": ring, "position": StateSpec((), torch.int64)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Attend, beside the MLP."""
        state = self.start(x, state)
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        mixed, u, gate = self.in_proj(x).split([q_width + 2 * kv_width, self.hidden, self.hidden], dim=-1)
        past: State = {}
        if self.conv1d is not None:
            mixed, past = self.conv1d(mixed, renamed(state, "conv", "items"))
        q, k, v = mixed.split([q_width, kv_width, kv_width], dim=-1)
        y, key, value, position = sliding_window_attention(
            q.unflatten(-1, (self.num_heads, self.head_dim)),
            k.unflatten(-1, (self.num_kv_heads, self.head_dim)),
            v.unflatten(-1, (self.num_kv_heads, self.head_dim)),
            self.inv_freq.to(state["key"].dtype),
            state["key"],
            state["value"],
            state["position"],
            self.scale,
        )
        y = y.flatten(-2)
        if self.hidden:
            y = torch.cat([y, u * F.silu(gate)], dim=-1)
        following = {"key": key, "value": value, "position": position}
        return self.out_proj(y), renamed(past, "items", "conv") | following
