"""A mixture of experts that are scored one by one, as in DeepSeek-V3 (2024) and Nemotron-H.

    scores  = sigmoid(router(x))                      each expert by itself
    chosen  = the k largest of scores + choice_bias   the bias chooses, and weighs nothing
    y       = scale * sum over the chosen of  scores_e / sum(scores) expert_e(x)

With groups, only the experts of the best groups can be chosen; a group is as good as its two best
experts together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.base import require_divisor, require_whole
from streamssm.export.layers.moe import MixtureOfExperts
from streamssm.export.layers.rms_norm import upcast


class SigmoidMixture(MixtureOfExperts):
    """x [B, T, d_model] -> y [B, T, d_model].

    ``experts`` in ``groups``, of which ``kept_groups`` are kept. Without ``normalise`` the scores are
    not divided by their sum. ``options`` are those of :class:`.MixtureOfExperts`.
    """

    def __init__(
        self,
        d_model: int,
        hidden: int,
        experts: int,
        top_k: int,
        groups: int = 1,
        kept_groups: int = 1,
        normalise: bool = True,
        scale: float = 1.0,
        **options: Any,
    ):
        super().__init__(d_model, hidden, experts, top_k, **options)
        name = "SigmoidMixture"
        require_whole(name, groups=groups, kept_groups=kept_groups)
        require_divisor(name, groups=(groups, experts))
        size = experts // groups
        if kept_groups > groups or (kept_groups < groups and size < 2) or top_k > kept_groups * size:
            raise LayerError(
                f"{name}: {top_k} experts of {kept_groups} out of {groups} groups of {size} cannot be had; "
                "groups need two experts, and those kept must hold top_k"
            )
        self.groups, self.kept_groups = groups, kept_groups
        self.normalise, self.scale = normalise, scale
        # trained by counting how often each expert is chosen, not by gradients
        self.choice_bias = nn.Parameter(torch.zeros(experts), requires_grad=False)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and experts of each item, [B, T, k]."""
        scores = upcast(self.router(x)).sigmoid()
        chosen = self._in_best_groups(scores + self.choice_bias).topk(self.top_k, dim=-1).indices
        scores = scores.gather(-1, chosen)
        if self.normalise:
            scores = scores / (scores.sum(-1, keepdim=True) + 1e-20)
        return (scores * self.scale).to(x.dtype), chosen

    def _in_best_groups(self, merit: Tensor) -> Tensor:
        """merit [B, T, E], minus infinity outside the groups that are kept."""
        if self.kept_groups == self.groups:
            return merit
        grouped = merit.unflatten(-1, (self.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept_groups, dim=-1).indices
        kept = (best[..., None, :] == torch.arange(self.groups, device=merit.device)[:, None]).any(-1)
        return grouped.masked_fill(~kept[..., None], -math.inf).flatten(-2)
