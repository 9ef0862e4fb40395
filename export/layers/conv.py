"""Causal convolution over time: stride, dilation and groups, with the past as its state.

B batch, T items, K kernel width, s stride, d dilation, F = T / s outputs. Output f is computed
when the last item of hop f has arrived, and its window ends there: what a convolution gives
whose input is padded on the left with (K-1) d + 1 - s zeros.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.activation import activation_function
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, require_divisor, require_whole
from streamssm.export.layers.windows import history, windows
from streamssm.export.ops import causal_conv1d


class CausalConv1d(StreamingLayer):
    """x [B, T, in] -> y [B, T / stride, out]; weight [out, in / groups, K] as in torch.

    State: ``items`` [B, history, in], the past that the next window needs in whole hops:
    (K-1) d items at stride 1.
    ``lookahead`` = n says that output f belongs n input items earlier than its newest input:
    the kernel then sees n items of the future. It is data for containers and moves nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str | None = None,
        lookahead: int = 0,
    ):
        super().__init__()
        name = "CausalConv1d"
        require_whole(name, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        require_whole(name, stride=stride, dilation=dilation, groups=groups)
        require_whole(name, 0, lookahead=lookahead)
        require_divisor(name, groups=(groups, in_channels))
        require_divisor(name, groups=(groups, out_channels), stride=(stride, lookahead))
        span = (kernel_size - 1) * dilation
        if lookahead > span:
            raise LayerError(f"{name}: lookahead = {lookahead} is beyond the {span} items the kernel spans")
        self.item_shape = (in_channels,)
        self.output_ratio = Fraction(1, stride)
        self.lookahead = lookahead
        self.kernel_size, self.stride, self.dilation, self.groups = kernel_size, stride, dilation, groups
        self.past = history(kernel_size, stride, dilation)
        depthwise = groups == in_channels == out_channels and stride == dilation == 1
        self.use_operator = depthwise and kernel_size > 1
        self.fused_silu = self.use_operator and activation == "silu"
        self.function = None if self.fused_silu else activation_function(name, activation)
        bound = 1 / math.sqrt(in_channels // groups * kernel_size)
        shape = (out_channels, in_channels // groups, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None

    def state_spec(self) -> dict[str, StateSpec]:
        """The past; none when a window fits in a hop."""
        return {"items": StateSpec((self.past, *self.item_shape))} if self.past else {}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Convolve, then activate."""
        state = self.start(x, state)
        y, state = self._operator(x, state) if self.use_operator else self._windows(x, state)
        return (y if self.function is None else self.function(y)), state

    def _operator(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        bias = self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
        y, items = causal_conv1d(x, self.weight[:, 0].T, bias, state["items"], self.fused_silu)
        return y, {"items": items}

    def _windows(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        full = x
        if self.past:
            full = torch.cat([state["items"], x.to(state["items"].dtype)], dim=1)
            state = {"items": full[:, -self.past :]}
        seen = windows(full, self.kernel_size, self.stride, self.dilation)
        return self._multiply(seen.to(self.weight.dtype)).to(x.dtype), state

    def _multiply(self, seen: Tensor) -> Tensor:
        """seen [B, F, K * in] -> [B, F, out], as one matrix product for each group."""
        out, C, K = self.weight.shape
        G = self.groups
        if G == 1:
            y = seen @ self.weight.permute(2, 1, 0).reshape(K * C, out)
        else:
            split = seen.unflatten(2, (K, G, C)).permute(0, 3, 1, 2, 4).flatten(3)  # [B, G, F, K C]
            weight = self.weight.reshape(G, out // G, C, K).permute(0, 3, 2, 1).reshape(G, K * C, out // G)
            y = (split @ weight).transpose(1, 2).flatten(2)
        return y if self.bias is None else y + self.bias
