"""Normalisation by an exponential running mean and variance, channel by channel.

    mean_t = decay mean_(t-1) + (1 - decay) x_t
    var_t  = decay var_(t-1) + (1 - decay) (x_t - mean_t)^2        decay = exp(-1 / time_constant)
    y_t    = (x_t - mean_t) / sqrt(var_t + eps)

Both start at a learnt prior. The state of the mean is its difference from the prior. The state
of the variance is the part that the input gave; the part left of the prior is decay^t, from the
number of items seen: as a difference from the prior, a variance far below it would be lost in
rounding. A linear recurrence with one decay is StateSpaceDual with one head, N = 1 and dt = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, require_whole
from streamssm.export.ops import state_space_dual

#: beyond this, what one item adds to a float32 mean is lost in its last digits
LONGEST = 1e6


class RunningNorm(StreamingLayer):
    """x [B, T, dim] -> y [B, T, dim].

    State: ``mean`` and ``var`` [B, 1, 1, dim], what the input added to the prior and to what is
    left of it, and ``position`` [B] int64, the number of items seen. ``time_constant`` counts
    items, at most 10^6. The prior is ``prior_mean`` and exp(``prior_log_var``), trained with the
    rest. ``decay`` is rounded to float32, so that it and 1 - decay add up to one in every form.
    """

    def __init__(self, dim: int, time_constant: float, eps: float = 1e-5):
        super().__init__()
        require_whole("RunningNorm", dim=dim)
        if not 0 < time_constant <= LONGEST:
            raise LayerError(
                f"RunningNorm: time_constant = {time_constant} must be positive and at most {LONGEST:g} items"
            )
        if not eps > 0:
            raise LayerError(f"RunningNorm: eps = {eps} must be positive")
        self.item_shape = (dim,)
        self.time_constant, self.eps = float(time_constant), eps
        self.decay = torch.tensor(math.exp(-1 / time_constant), dtype=torch.float32).item()
        self.prior_mean = nn.Parameter(torch.zeros(dim))
        self.prior_log_var = nn.Parameter(torch.zeros(dim))

    def state_spec(self) -> dict[str, StateSpec]:
        """Two averages in the layout of StateSpaceDual, and the number of items."""
        spec = StateSpec((1, 1, *self.item_shape))
        return {"mean": spec, "var": spec, "position": StateSpec((), torch.int64)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Update the statistics with each item, then normalise it."""
        state = self.start(x, state)
        dtype, T = state["mean"].dtype, x.shape[1]
        shifted = x.to(dtype) - self.prior_mean.to(dtype)
        average, mean = self._average(shifted, state["mean"])
        centred = shifted - average
        spread, var = self._average(centred.square(), state["var"])
        seen = state["position"][:, None] + torch.arange(1, T + 1, device=x.device)
        prior_left = torch.exp(seen.to(dtype) * self._log_decay)[..., None]
        variance = spread + prior_left * self.prior_log_var.to(dtype).exp()
        y = (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return y, {"mean": mean, "var": var, "position": state["position"] + T}

    @property
    def _log_decay(self) -> float:
        # a decay below the smallest float32 keeps nothing of the past, as -200 does
        return math.log(self.decay) if self.decay else -200.0

    def _average(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential average of x [B, T, dim] after each item."""
        one = torch.ones_like(x[..., :1])  # dt, B and C
        column, skip = one[:, :, None], x.new_zeros(1, x.shape[-1])
        inflow, log_decay = x * (1 - self.decay), x.new_full((1,), self._log_decay)
        y, state = state_space_dual(inflow[:, :, None], one, log_decay, column, column, skip, state)
        return y[:, :, 0], state
