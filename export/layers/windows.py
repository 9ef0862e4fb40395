"""Overlapping windows over time, cut with constant slices: right for every T, zero included,
and no shape arithmetic in the exported graph."""

from __future__ import annotations

import torch
from torch import Tensor


def history(size: int, hop: int, dilation: int = 1) -> int:
    """Items of the past that a call needs before its first hop: whole hops."""
    return (_hops(size, hop, dilation) - 1) * hop


def _hops(size: int, hop: int, dilation: int) -> int:
    span = (size - 1) * dilation + 1
    return -(-span // hop)


def windows(full: Tensor, size: int, hop: int, dilation: int = 1) -> Tensor:
    """full [B, history + F * hop, C] -> [B, F, size * C].

    Window f holds ``size`` items, ``dilation`` apart, and ends with the last item of hop f.
    """
    channels, count = full.shape[2], _hops(size, hop, dilation)
    hops = full if hop == 1 else full.reshape(full.shape[0], -1, hop * channels)
    # with a hop of one item, the hops between the taps are not needed at all
    step = dilation if hop == 1 else 1
    pieces = [hops[:, first : first - count + 1 or None] for first in range(0, count, step)]
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    if hop == 1:
        return joined
    skip = count * hop - (size - 1) * dilation - 1
    if dilation == 1:
        return joined[:, :, skip * channels :] if skip else joined
    return joined.unflatten(2, (count * hop, channels))[:, :, skip::dilation].flatten(2)
