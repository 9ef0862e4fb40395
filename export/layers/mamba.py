"""Mamba, the selective state-space mixer (Gu & Dao 2023), named as in published checkpoints.

B batch, T items, d model width, D inner width, N state size, K conv width, R rank of dt.

    x, z     = in_proj(u)
    x        = silu(conv1d(x))                            depthwise, causal
    dt, B, C = x_proj(x)                                  R, N, N
    dt       = softplus(dt_proj(dt))
    h[n, d]  = exp(dt_d A[d, n]) h[n, d] + dt_d B_n x_d   A = -exp(A_log)
    y        = out_proj((sum_n C_n h[n, d] + D_d x_d) silu(z))
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, renamed, require_whole
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.layers.rms_norm import RMSNorm
from streamssm.export.ops import selective_scan


def initial_dt_bias(size: int, dt_min: float, dt_max: float) -> Tensor:
    """A bias whose softplus is log-uniform in [dt_min, dt_max].

    Raises:
        LayerError: the range is empty or not positive.
    """
    if not 0 < dt_min <= dt_max:
        raise LayerError(f"dt_min = {dt_min} and dt_max = {dt_max} must satisfy 0 < dt_min <= dt_max")
    dt = torch.empty(size).uniform_(math.log(dt_min), math.log(dt_max)).exp()
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


class Mamba(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model].

    State: ``conv`` [B, K-1, D], the last inputs of the convolution, and ``ssm`` [B, N, D].
    ``d_inner`` gives D where it is not ``expand * d_model``. ``inner_norm`` is the eps of an RMSNorm
    of each of dt, B and C, as in Jamba and, without ``inner_weights``, in FalconMamba.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        conv_bias: bool = True,
        bias: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        d_inner: int | None = None,
        inner_norm: float | None = None,
        inner_weights: bool = True,
    ):
        super().__init__()
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        D, N, R = expand * d_model if d_inner is None else d_inner, d_state, rank
        require_whole("Mamba", d_model=d_model, d_state=N, d_conv=d_conv, d_inner=D, dt_rank=R)
        self.item_shape = (d_model,)
        self.d_inner, self.d_state, self.dt_rank = D, N, R
        self.in_proj = nn.Linear(d_model, 2 * D, bias)
        self.conv1d = CausalConv1d(D, D, d_conv, groups=D, bias=conv_bias, activation="silu")
        self.x_proj = nn.Linear(D, R + 2 * N, bias=False)
        sizes = (R, N, N) if inner_norm is not None else ()
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = (
            *(RMSNorm(size, inner_norm, inner_weights) for size in sizes),
            *[None] * (3 - len(sizes)),
        )
        self.dt_proj = nn.Linear(R, D)
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(D, 1))
        self.D = nn.Parameter(torch.ones(D))
        self.out_proj = nn.Linear(D, d_model, bias)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(R**-0.5), R**-0.5)
            self.dt_proj.bias.copy_(initial_dt_bias(D, dt_min, dt_max))

    def state_spec(self) -> dict[str, StateSpec]:
        """Past of the convolution (none for d_conv = 1) and the recurrent state."""
        return renamed(self.conv1d.state_spec(), "items", "conv") | {
            "ssm": StateSpec((self.d_state, self.d_inner))
        }

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Mix; see the module docstring."""
        state = self.start(x, state)
        dtype = state["ssm"].dtype
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, past = self.conv1d(u, renamed(state, "conv", "items"))
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if self.dt_layernorm is not None:
            dt, B, C = self.dt_layernorm(dt)[0], self.b_layernorm(B)[0], self.c_layernorm(C)[0]
        dt = F.linear(dt, self.dt_proj.weight)
        A = -torch.exp(self.A_log.to(dtype)).T
        bias = self.dt_proj.bias.to(dtype)
        y, ssm = selective_scan(u, dt, A, B, C, self.D.to(dtype), bias, z, state["ssm"])
        return self.out_proj(y), renamed(past, "items", "conv") | {"ssm": ssm}
