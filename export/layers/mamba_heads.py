"""Mamba with several heads, the mixer of Zamba (Glorioso et al. 2024).

One convolution, then a selective scan for each head of P = D / H channels, with B, C and dt of
its own. Letters and recurrence as in :mod:`.mamba`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.base import (
    State,
    StateSpec,
    StreamingLayer,
    renamed,
    require_divisor,
    require_whole,
)
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.layers.mamba import initial_dt_bias
from streamssm.export.ops import selective_scan


class ScanHead(nn.Module):
    """One head: x, z [B, T, P] and its state [B, N, P] -> y [B, T, P] and the next state."""

    def __init__(self, channels: int, d_state: int, rank: int, dt_min: float, dt_max: float):
        super().__init__()
        P, N, R = channels, d_state, rank
        self.sizes = (R, N, N)
        self.x_proj = nn.Linear(P, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, P)
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(P, 1))
        self.D = nn.Parameter(torch.ones(P))
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(R**-0.5), R**-0.5)
            self.dt_proj.bias.copy_(initial_dt_bias(P, dt_min, dt_max))

    def forward(self, x: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scan and gate."""
        dtype = state.dtype
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        dt = F.linear(dt, self.dt_proj.weight)
        A = -torch.exp(self.A_log.to(dtype)).T
        return selective_scan(x, dt, A, B, C, self.D.to(dtype), self.dt_proj.bias.to(dtype), z, state)


class MultiHeadMamba(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model].

    State: ``conv`` [B, K-1, D], and ``ssm.{h}`` [B, N, P] for each head.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        conv_bias: bool = True,
        bias: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ):
        super().__init__()
        name = "MultiHeadMamba"
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        require_whole(name, d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=rank)
        require_whole(name, num_heads=num_heads)
        D = expand * d_model
        require_divisor(name, num_heads=(num_heads, D))
        self.item_shape = (d_model,)
        self.channels, self.d_state = D // num_heads, d_state
        self.in_proj = nn.Linear(d_model, 2 * D, bias)
        self.conv1d = CausalConv1d(D, D, d_conv, groups=D, bias=conv_bias, activation="silu")
        self.heads = nn.ModuleList(
            ScanHead(self.channels, d_state, rank, dt_min, dt_max) for _ in range(num_heads)
        )
        self.out_proj = nn.Linear(D, d_model, bias)

    def state_spec(self) -> dict[str, StateSpec]:
        """Past of the convolution (none for d_conv = 1) and the recurrent states."""
        ssm = StateSpec((self.d_state, self.channels))
        heads = {f"ssm.{h}": ssm for h in range(len(self.heads))}
        return renamed(self.conv1d.state_spec(), "items", "conv") | heads

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Mix; see the module docstring."""
        state = self.start(x, state)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, past = self.conv1d(u, renamed(state, "conv", "items"))
        following = renamed(past, "items", "conv")
        mixed = []
        parts = zip(u.split(self.channels, -1), z.split(self.channels, -1), strict=True)
        for h, (u_h, z_h) in enumerate(parts):
            y, following[f"ssm.{h}"] = self.heads[h](u_h, z_h, state[f"ssm.{h}"])
            mixed.append(y)
        return self.out_proj(torch.cat(mixed, dim=-1)), following
