"""Mamba-2, the state-space-dual mixer (Dao & Gu 2024), named as in published checkpoints.

B batch, T items, d model width, D inner width, H heads of P channels, G groups, N state size,
K conv width.

    z, xBC, dt = in_proj(u)                               D, D + 2 G N, H
    x, B, C    = silu(conv1d(xBC))                        one depthwise causal convolution
    dt         = clip(softplus(dt + dt_bias), dt_limit)   in every form alike
    h[h, n, p] = exp(dt_h A_h) h + dt_h B[g, n] x[h, p]   A = -exp(A_log), g = h // (H / G)
    y          = sum_n C[g, n] h[h, n, p] + D_h x[h, p]
    out        = out_proj(norm(y, z))                     see GatedRMSNorm
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.errors import LayerError
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
from streamssm.export.layers.rms_norm import GatedRMSNorm
from streamssm.export.ops import state_space_dual


class Mamba2(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model].

    State: ``conv`` [B, K-1, D + 2 G N] and ``ssm`` [B, H, N, P]. ``dt_limit`` clips dt (None
    for its upper end means no limit). ``d_inner`` gives D where it is not ``expand * d_model``, and
    ``out_bias`` a bias to out_proj alone. ``d_has_hdim`` gives each channel its own D. The norm's
    variance is taken over ``norm_group_size`` channels, those of one group (D / G) by default,
    as mamba_ssm and transformers do. Without ``rmsnorm`` the output is y silu(z).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        dt_limit: tuple[float, float | None] = (0.0, math.inf),
        norm_before_gate: bool = False,
        norm_group_size: int | None = None,
        d_has_hdim: bool = False,
        rmsnorm: bool = True,
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        d_inner: int | None = None,
        out_bias: bool | None = None,
    ):
        super().__init__()
        D = expand * d_model if d_inner is None else d_inner
        require_whole("Mamba2", d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        require_whole("Mamba2", headdim=headdim, ngroups=ngroups, d_inner=D)
        require_divisor("Mamba2", headdim=(headdim, D))
        H, mixed = D // headdim, D + 2 * ngroups * d_state
        require_divisor("Mamba2", ngroups=(ngroups, H))
        self.item_shape = (d_model,)
        self.heads, self.headdim, self.ngroups, self.d_state = H, headdim, ngroups, d_state
        self.dt_limit = _limits(dt_limit)
        self.in_proj = nn.Linear(d_model, D + mixed + H, bias)
        self.conv1d = CausalConv1d(mixed, mixed, d_conv, groups=mixed, bias=conv_bias, activation="silu")
        self.dt_bias = nn.Parameter(initial_dt_bias(H, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.empty(H).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(D if d_has_hdim else H))
        group_size = D // ngroups if norm_group_size is None else norm_group_size
        self.norm = GatedRMSNorm(D, eps, norm_before_gate, group_size) if rmsnorm else None
        self.out_proj = nn.Linear(D, d_model, bias if out_bias is None else out_bias)

    def state_spec(self) -> dict[str, StateSpec]:
        """Past of the convolution (none for d_conv = 1) and the recurrent state."""
        return renamed(self.conv1d.state_spec(), "items", "conv") | {
            "ssm": StateSpec((self.heads, self.d_state, self.headdim))
        }

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Mix; see the module docstring."""
        state = self.start(x, state)
        dtype = state["ssm"].dtype
        H, P, G, N = self.heads, self.headdim, self.ngroups, self.d_state
        z, mixed, dt = self.in_proj(x).split([H * P, H * P + 2 * G * N, H], dim=-1)
        mixed, past = self.conv1d(mixed, renamed(state, "conv", "items"))
        u, B, C = mixed.split([H * P, G * N, G * N], dim=-1)
        y, ssm = state_space_dual(
            u.unflatten(-1, (H, P)),
            self._time_step(dt.to(dtype)),
            -torch.exp(self.A_log.to(dtype)),
            B.unflatten(-1, (G, N)),
            C.unflatten(-1, (G, N)),
            self.D.to(dtype).reshape(H, -1).expand(H, P),
            state["ssm"],
        )
        y = y.flatten(-2)
        y = y * F.silu(z) if self.norm is None else self.norm(y, z)
        return self.out_proj(y), renamed(past, "items", "conv") | {"ssm": ssm}

    def _time_step(self, dt: Tensor) -> Tensor:
        """dt [B, T, H] raw -> positive and clipped."""
        dt = F.softplus(dt + self.dt_bias.to(dt.dtype))
        low, high = self.dt_limit
        if (low, high) == (0.0, math.inf):
            return dt
        return dt.clamp(min=low, max=None if high == math.inf else high)


def _limits(dt_limit: tuple[float, float | None]) -> tuple[float, float]:
    low, high = dt_limit
    high = math.inf if high is None else float(high)
    if not 0 <= low <= high:
        raise LayerError(f"Mamba2: dt_limit = {tuple(dt_limit)} must be (low, high) with 0 <= low <= high")
    return float(low), high
