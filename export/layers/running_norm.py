"""Normalisation by an exponential running mean and variance, channel by channel.

    mean_t = decay mean_(t-1) + (1 - decay) x_t
    var_t  = decay var_(t-1) + (1 - decay) (x_t - mean_t)^2        decay = exp(-1 / time_constant)
    y_t    = (x_t - mean_t) / sqrt(var_t + eps)

Both start at a learnt prior; the states hold the difference from it, so that they start at
zero. A linear recurrence with one decay is StateSpaceDual with one head, N = 1 and dt = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, require_whole
from streamssm.export.ops import state_space_dual


class RunningNorm(StreamingLayer):
    """x [B, T, dim] -> y [B, T, dim].

    State: ``mean`` and ``var`` [B, 1, 1, dim], differences from the prior. ``time_constant``
    counts items. The prior is ``prior_mean`` and exp(``prior_log_var``), trained with the rest.
    """

    def __init__(self, dim: int, time_constant: float, eps: float = 1e-5):
        super().__init__()
        require_whole("RunningNorm", dim=dim)
        if not time_constant > 0 or not eps > 0:
            raise LayerError(f"RunningNorm: time_constant = {time_constant} and eps = {eps} must be positive")
        self.item_shape = (dim,)
        self.time_constant, self.eps = float(time_constant), eps
        self.prior_mean = nn.Parameter(torch.zeros(dim))
        self.prior_log_var = nn.Parameter(torch.zeros(dim))

    def state_spec(self) -> dict[str, StateSpec]:
        """Differences from the prior, in the layout of StateSpaceDual."""
        spec = StateSpec((1, 1, *self.item_shape))
        return {"mean": spec, "var": spec}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Update the statistics with each item, then normalise it."""
        state = self.start(x, state)
        dtype = state["mean"].dtype
        mean, var = self.prior_mean.to(dtype), self.prior_log_var.to(dtype).exp()
        shifted = x.to(dtype) - mean
        one = torch.ones_like(shifted[..., :1])
        average, next_mean = self._average(shifted, one, state["mean"])
        centred = shifted - average
        spread, next_var = self._average(centred.square() - var, one, state["var"])
        # the sum cannot be negative but for rounding
        variance = (spread + var).clamp(min=0)
        return (centred * torch.rsqrt(variance + self.eps)).to(x.dtype), {"mean": next_mean, "var": next_var}

    def _average(self, x: Tensor, one: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential average of x [B, T, dim] after each item; ``one`` [B, T, 1] is dt and B and C."""
        decay = x.new_full((1,), -1 / self.time_constant)
        inflow = x * -math.expm1(-1 / self.time_constant)
        column, skip = one[:, :, None], x.new_zeros(1, x.shape[-1])
        y, state = state_space_dual(inflow[:, :, None], one, decay, column, column, skip, state)
        return y[:, :, 0], state
