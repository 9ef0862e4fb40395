"""A mixture of experts (Shazeer et al. 2017): each item passes through k of E feed-forward blocks.

    scores  = softmax(router(x))                          over all E, or over the k chosen
    y       = sum over the k largest of  scores_e expert_e(x)

Rows are sorted by expert, and each expert multiplies its own rows only: an expert that no item of a
call has chosen is not read, and no item passes through more than k. No capacity: no item is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.activation import activation_function
from streamssm.export.layers.base import State, StreamingLayer, require_whole
from streamssm.export.layers.rms_norm import upcast
from streamssm.export.ops import expert_linear


class Expert(nn.Module):
    """The weights of one block: fc1 (u, then the gate if there is one), fc2."""

    def __init__(self, width: int, hidden: int, gated: bool):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)


class MixtureOfExperts(StreamingLayer):
    """x [B, T, d_model] -> y [B, T, d_model].

    ``experts`` gated blocks of ``hidden`` channels, of which each item takes ``top_k``. Their
    weights are a softmax over all experts, or with ``renormalise`` over those chosen, so that they
    add up to one. Without ``gated`` the blocks are plain. ``latent`` is the width that the experts
    work in, between two products of their own, where it is not d_model; ``bias`` is that of these.
    """

    def __init__(
        self,
        d_model: int,
        hidden: int,
        experts: int,
        top_k: int,
        renormalise: bool = False,
        activation: str = "silu",
        gated: bool = True,
        latent: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        name = "MixtureOfExperts"
        width = d_model if latent is None else latent
        require_whole(name, d_model=d_model, hidden=hidden, experts=experts, top_k=top_k, latent=width)
        if top_k > experts:
            raise LayerError(f"{name}: top_k = {top_k} is more than there are experts ({experts})")
        self.item_shape = (d_model,)
        self.top_k, self.renormalise, self.gated = top_k, renormalise, gated
        self.function = activation_function(name, activation)
        self.router = nn.Linear(d_model, experts, bias=False)
        self.into = None if latent is None else nn.Linear(d_model, latent, bias)
        self.experts = nn.ModuleList(Expert(width, hidden, gated) for _ in range(experts))
        self.back = None if latent is None else nn.Linear(latent, d_model, bias)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Choose, compute, add."""
        state = self.start(x, state)
        scores, chosen = self._route(x)
        inner = x if self.into is None else self.into(x)
        rows, order, counts = self._sort(inner.flatten(0, 1), chosen.flatten())
        hidden = self._activate(expert_linear(rows, counts, [e.fc1.weight for e in self.experts]))
        y = expert_linear(hidden, counts, [e.fc2.weight for e in self.experts])
        # back in the order of the items, k rows for each
        y = y.index_select(0, order.argsort()).unflatten(0, (-1, self.top_k))
        y = y * scores.flatten(0, 1)[..., None]
        y = y.sum(1).reshape(inner.shape)
        return (y if self.back is None else self.back(y)), state

    def _activate(self, hidden: Tensor) -> Tensor:
        if not self.gated:
            return self.function(hidden)
        u, gate = hidden.chunk(2, dim=-1)
        return u * self.function(gate)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and experts of each item, [B, T, k]."""
        logits = upcast(self.router(x))
        if self.renormalise:
            best, chosen = logits.topk(self.top_k, dim=-1)
            return best.softmax(-1).to(x.dtype), chosen
        scores, chosen = logits.softmax(-1).topk(self.top_k, dim=-1)
        return scores.to(x.dtype), chosen

    def _sort(self, items: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """items [M, d], chosen [M k] -> rows [M k, d] by expert, their order, rows of each expert."""
        order = chosen.argsort()
        counts = (chosen[:, None] == torch.arange(len(self.experts), device=chosen.device)).sum(0)
        item = torch.arange(items.shape[0], device=items.device)[:, None].expand(-1, self.top_k).flatten()
        return items.index_select(0, item.index_select(0, order)), order, counts
