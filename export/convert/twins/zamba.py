"""transformers' Zamba and Zamba2: Mamba with several heads, and shared attention with adapters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.twins.adoption import OWN, silent
from streamssm.export.convert.warm import SilentConv1d
from streamssm.export.layers import CausalConv1d, SlidingWindowAttention
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, renamed
from streamssm.export.ops import selective_scan


class MultiHeadTwin(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model], all weights read from the module at each call.

    State: ``conv`` [B, K-1, D], and ``ssm.{h}`` [B, N, P] for each head.
    """

    handles_warm_up = True

    def __init__(self, module: nn.Module):
        super().__init__()
        if module.activation not in ("silu", "swish"):
            raise TwinError(f"activates with {module.activation}, not silu", OWN)
        self.source = module
        self.item_shape = (module.in_proj.in_features,)
        self.conv = _convolution(module.conv1d)

    def state_spec(self) -> dict[str, StateSpec]:
        """Past of the convolution and the recurrent states."""
        H, P, N = self.source.A_log.shape
        heads = {f"ssm.{h}": StateSpec((N, P)) for h in range(H)}
        return renamed(self.conv.state_spec(), "items", "conv") | heads

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Each head by itself, between one convolution and one projection."""
        state, source = self.start(x, state), self.source
        P = source.A_log.shape[1]
        # channels of x and of its gate take turns
        u, z = source.in_proj(x).unflatten(-1, (-1, 2)).unbind(-1)
        u, past = self.conv(u, renamed(state, "conv", "items"))
        following, ys = renamed(past, "items", "conv"), []
        for h, (u_h, z_h) in enumerate(zip(u.split(P, -1), z.split(P, -1), strict=True)):
            y, following[f"ssm.{h}"] = self._head(h, u_h, z_h, state[f"ssm.{h}"])
            ys.append(y)
        return source.out_proj(torch.cat(ys, dim=-1)), following

    def _head(self, h: int, x: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x, z [B, T, P], state [B, N, P]."""
        source, dtype = self.source, state.dtype
        R, N = source.dt_proj_weight.shape[-1], source.A_log.shape[-1]
        dt, B, C = F.linear(x, source.x_proj_weight[h]).split([R, N, N], dim=-1)
        dt = F.linear(dt, source.dt_proj_weight[h])
        A = -torch.exp(source.A_log[h].to(dtype)).T
        D, bias = source.D[h].to(dtype), source.dt_proj_bias[h].to(dtype)
        return selective_scan(x, dt, A, B, C, D, bias, z, state)


def _convolution(conv: nn.Conv1d) -> SilentConv1d:
    """Around the parameters of a depthwise convolution of torch."""
    D, K = conv.out_channels, conv.kernel_size[0]
    with torch.device("meta"):
        made = silent(CausalConv1d(D, D, K, groups=D, bias=conv.bias is not None, activation="silu"))
    made.weight, made.bias = conv.weight, conv.bias
    return made


class _AdaptedProjection(nn.Module):
    """A shared projection and the adapter of the present use of the block."""

    def __init__(self, linear: nn.Linear, adapters: nn.ModuleList):
        super().__init__()
        self.linear, self.adapters, self.use = linear, adapters, 0

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return self.linear(x) + self.adapters[self.use](x)


class AdaptedAttention(SlidingWindowAttention):
    """Attention of a block that several depths share: the call says by ``layer_idx`` which it is."""

    def adapt(self, module: nn.Module) -> None:
        """Put the module's adapters beside the projections."""
        self.uses = dict(module.layer_dic)
        for letter in "qkv":
            linear = getattr(self, f"{letter}_proj")
            adapters = getattr(module, f"linear_{letter}_adapter_list")
            setattr(self, f"{letter}_proj", _AdaptedProjection(linear, adapters))

    def call(self, x: Tensor, state: State, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, State]:
        """As transformers calls it: (hidden_states, layer_idx, ...)."""
        index = args[1] if len(args) > 1 else kwargs["layer_idx"]
        for letter in "qkv":
            getattr(self, f"{letter}_proj").use = self.uses[index]
        return self(x, state)
