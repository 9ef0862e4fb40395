"""Root-mean-square normalisation (Zhang & Sennrich 2019). No state.

Computed in float32 or better whatever the dtype of x: squares of 16-bit values overflow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.layers.base import State, StreamingLayer, require_divisor, require_whole


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis, in x's dtype: give float32 or float64."""
    # a division, because ONNX Runtime recognises and fuses this form and not the reciprocal one
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def upcast(x: Tensor) -> Tensor:
    """x in float32, or float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(StreamingLayer):
    """x [B, T, dim] -> x / sqrt(mean(x^2) + eps) * weight; without ``affine`` there is no weight."""

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        require_whole("RMSNorm", dim=dim)
        self.item_shape = (dim,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Normalise each item."""
        state = self.start(x, state)
        y = rms_normalise(upcast(x), self.eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype), state


class GatedRMSNorm(nn.Module):
    """The norm inside Mamba-2: y and gate z [B, T, D] -> [B, T, D].

    The default gates first, norm(y silu(z)) w; ``norm_before_gate`` gives norm(y) w silu(z).
    The variance is taken over groups of ``group_size`` channels (all of D by default).
    """

    def __init__(
        self, dim: int, eps: float = 1e-5, norm_before_gate: bool = False, group_size: int | None = None
    ):
        super().__init__()
        self.eps = eps
        self.norm_before_gate = norm_before_gate
        self.group_size = dim if group_size is None else group_size
        require_whole("GatedRMSNorm", dim=dim, norm_group_size=self.group_size)
        require_divisor("GatedRMSNorm", norm_group_size=(self.group_size, dim))
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise and gate, in float32 or better."""
        h, gate = upcast(y), F.silu(upcast(z))
        if self.norm_before_gate:
            return (self._normalise(h) * gate).to(y.dtype)
        return self._normalise(h * gate).to(y.dtype)

    def _normalise(self, h: Tensor) -> Tensor:
        if self.group_size == h.shape[-1]:
            return rms_normalise(h, self.eps) * self.weight
        grouped = h.unflatten(-1, (-1, self.group_size))
        return rms_normalise(grouped, self.eps).flatten(-2) * self.weight
