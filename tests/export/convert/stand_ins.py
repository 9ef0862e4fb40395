"""Classes with the qualified names, parameters and behaviour of mamba_ssm's, in plain slow torch:
mamba_ssm itself cannot be installed without a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mamba(nn.Module):
    """mamba_ssm.modules.mamba_simple.Mamba, its recurrence written as a loop."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, bias: bool = False):
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = expand * d_model, d_state, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.rand(self.d_inner, d_state).add(0.5).log())
        self.D = nn.Parameter(torch.rand(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        T = hidden_states.shape[1]
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        x = F.silu(self.conv1d(x)[..., :T]).transpose(1, 2)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        A, h, ys = -torch.exp(self.A_log), x.new_zeros(x.shape[0], self.d_inner, self.d_state), []
        for t in range(T):
            h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
            ys.append((h * C[:, t, None]).sum(-1) + self.D * x[:, t])
        return self.out_proj(torch.stack(ys, 1) * F.silu(z.transpose(1, 2)))


class GatedNorm(nn.Module):
    """mamba_ssm.ops.triton.layernorm_gated.RMSNorm."""

    def __init__(self, size: int, group_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.register_parameter("bias", None)
        self.eps, self.group_size, self.norm_before_gate = 1e-5, group_size, False

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        raise RuntimeError("Pointer argument cannot be accessed from Triton (cpu tensor?)")


class Mamba2(nn.Module):
    """mamba_ssm.modules.mamba2.Mamba2, whose forward needs a GPU."""

    def __init__(self, d_model: int, d_state: int = 8, headdim: int = 4, ngroups: int = 1, expand: int = 2):
        super().__init__()
        self.d_inner = self.d_ssm = D = expand * d_model
        H, mixed = D // headdim, D + 2 * ngroups * d_state
        self.headdim, self.ngroups, self.d_state, self.dt_limit = headdim, ngroups, d_state, (0.0, math.inf)
        self.in_proj = nn.Linear(d_model, D + mixed + H, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, 4, groups=mixed, padding=3)
        self.dt_bias, self.A_log = nn.Parameter(torch.rand(H)), nn.Parameter(torch.rand(H))
        self.D = nn.Parameter(torch.rand(H))
        self.norm = GatedNorm(D, D // ngroups)
        self.out_proj = nn.Linear(D, d_model, bias=False)

    def forward(self, u: Tensor, seqlen: Any = None, inference_params: Any = None) -> Tensor:
        raise RuntimeError("causal_conv1d_cuda is not available")


class RMSNorm(nn.Module):
    """mamba_ssm.ops.triton.layer_norm.RMSNorm, whose forward needs a GPU."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.register_parameter("bias", None)
        self.eps = 1e-5

    def forward(self, x: Tensor, residual: Any = None, prenorm: bool = False, residual_in_fp32: bool = False):
        raise RuntimeError("Pointer argument cannot be accessed from Triton (cpu tensor?)")


class Block(nn.Module):
    """mamba_ssm.modules.block.Block, with its fused norm."""

    def __init__(self, mixer: nn.Module, size: int):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = True, True
        self.norm, self.mixer, self.mlp = RMSNorm(size), mixer, None

    def forward(
        self, hidden_states: Tensor, residual: Any = None, inference_params: Any = None, **kwargs: Any
    ):
        raise RuntimeError("Pointer argument cannot be accessed from Triton (cpu tensor?)")


Mamba.__module__ = "mamba_ssm.modules.mamba_simple"
Mamba2.__module__ = "mamba_ssm.modules.mamba2"
Block.__module__ = "mamba_ssm.modules.block"
RMSNorm.__module__ = "mamba_ssm.ops.triton.layer_norm"
GatedNorm.__module__, GatedNorm.__qualname__ = "mamba_ssm.ops.triton.layernorm_gated", "RMSNorm"
