"""The time mixing of Mamba-2 for training on short reads: one matrix form over the whole read, in bfloat16.

`install()` makes every Mamba2 layer use it. Only training speed depends on this file; decays stay in float32.
A read starts from a zero state, and the state that is left is not computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def state_space_dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As `streamssm.export.ops.state_space_dual` from a zero state, for one group.

    x [B, T, H, P], dt [B, T, H], B, C [B, T, 1, N], D [H, P] -> y [B, T, H, P].
    """
    T = x.shape[1]
    half = torch.bfloat16 if x.is_cuda else x.dtype
    sums = (dt * A).transpose(1, 2).cumsum(-1)  # [B, H, T]
    lower = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
    decay = (sums[..., :, None] - sums[..., None, :]).masked_fill(~lower, -torch.inf).exp()
    products = C[:, :, 0].to(half) @ B[:, :, 0].to(half).transpose(1, 2)  # [B, T, T]
    mixing = (products[:, None] * decay).to(half)
    u = (x * dt[..., None]).to(half).transpose(1, 2)
    y = (mixing @ u).transpose(1, 2) + x * D.to(x.dtype)
    return y.to(x.dtype), state


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """As `streamssm.export.ops.causal_conv1d` from a zero state: x [B, T, D], weight [K, D]."""
    K, T = weight.shape[0], x.shape[1]
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    full = F.pad(x, (0, 0, K - 1, 0))
    y = bias + sum(full[:, tap : tap + T] * weight[tap] for tap in range(K))
    return (F.silu(y) if silu else y).to(x.dtype), state


def install() -> None:
    """Let Mamba2 layers use these forms from now on."""
    from streamssm.export.layers import conv, mamba2

    mamba2.state_space_dual = state_space_dual
    conv.causal_conv1d = causal_conv1d
