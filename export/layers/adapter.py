"""Low-rank adapters (Hu et al. 2021): layers that share a matrix, and each add to it their own."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from streamssm.export.layers.base import StreamingLayer, require_whole


class AdaptedLinear(nn.Module):
    """x [..., in] -> shared(x) + up(down(x)), where down has ``rank`` outputs."""

    def __init__(self, shared: nn.Linear, rank: int):
        super().__init__()
        require_whole("AdaptedLinear", rank=rank)
        self.shared = shared
        self.down = nn.Linear(shared.in_features, rank, bias=False)
        self.up = nn.Linear(rank, shared.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The shared product and the layer's own."""
        return self.shared(x) + self.up(self.down(x))


def adapted(layer: StreamingLayer, names: tuple[str, ...], rank: int) -> StreamingLayer:
    """A twin of ``layer`` with the same parameters, whose products ``names`` have adapters of its own.

    Twins are layers like any other: their states are theirs, and what is done to a parameter that
    they share is done to all.
    """
    require_whole("adapted", rank=rank)
    twin = copy.copy(layer)
    twin._modules = dict(layer._modules)
    for name in names:
        setattr(twin, name, AdaptedLinear(getattr(layer, name), rank))
    return twin
