"""Sliding-window attention with grouped heads and rotary positions.

B batch, T items, W window, Hq query heads, Hkv key/value heads, dh head dim, R rotary dims.
An item attends to itself and the W - 1 items before it, whatever the split of the input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, require_divisor, require_whole
from streamssm.export.ops import sliding_window_attention


class SlidingWindowAttention(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model], or from items of ``input_dim`` channels.

    Scores are scaled by ``scale``, 1 / sqrt(dh) by default. ``bias`` is that of the projections,
    ``out_bias`` that of the last one where it differs.
    State: ``key`` and ``value`` [B, Hkv, W, dh], rings of un-rotated keys and of values, and
    ``position`` [B] int64, the number of items seen. ``rope_base=None`` means no positions.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        window: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_base: float | None = 10000.0,
        rotary_dim: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        input_dim: int | None = None,
        scale: float | None = None,
    ):
        super().__init__()
        name = "SlidingWindowAttention"
        width = d_model if input_dim is None else input_dim
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        require_whole(name, d_model=d_model, num_heads=num_heads, window=window, num_kv_heads=kv_heads)
        require_divisor(name, num_kv_heads=(kv_heads, num_heads))
        if head_dim is None:
            require_divisor(name, num_heads=(num_heads, d_model))
            head_dim = d_model // num_heads
        require_whole(name, head_dim=head_dim, input_dim=width)
        self.item_shape = (width,)
        self.scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
        self.num_heads, self.num_kv_heads, self.head_dim, self.window = num_heads, kv_heads, head_dim, window
        self.register_constant("inv_freq", frequencies(head_dim, rotary_dim, rope_base))
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias)
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias if out_bias is None else out_bias)

    def state_spec(self) -> dict[str, StateSpec]:
        """Two rings and a position."""
        ring = StateSpec((self.num_kv_heads, self.window, self.head_dim))
        return {"key": ring, "value": ring, "position": StateSpec((), torch.int64)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Attend."""
        state = self.start(x, state)
        y, key, value, position = sliding_window_attention(
            self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim)),
            self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim)),
            self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim)),
            self.inv_freq.to(state["key"].dtype),
            state["key"],
            state["value"],
            state["position"],
            self.scale,
        )
        return self.o_proj(y.flatten(-2)), {"key": key, "value": value, "position": position}


def frequencies(head_dim: int, rotary_dim: int | None, rope_base: float | None) -> Tensor:
    """base^(-2 i / R) for i < R / 2 (Su et al. 2021), float64; real even in a model on meta."""
    if rope_base is None:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    R = head_dim if rotary_dim is None else rotary_dim
    if R % 2 or not 0 <= R <= head_dim:
        raise LayerError(
            f"SlidingWindowAttention: rotary_dim = {R} must be even and at most the head dim of {head_dim}; "
            "give rotary_dim, or rope_base=None for no positions"
        )
    if rope_base <= 0:
        raise LayerError(f"SlidingWindowAttention: rope_base = {rope_base} must be positive")
    return rope_base ** (-torch.arange(0, R, 2, dtype=torch.float64, device="cpu") / max(R, 1))
