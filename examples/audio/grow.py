"""A larger network that starts as the very function of a smaller trained one (Net2Net, Chen et al. 2015).

Wider inner layers and further blocks are there from the start but add exactly nothing to the output,
because the weights by which they would are zero; training then moves them. That takes a gradient: behind
blocks that write very large numbers to the stream (10^8 in the built-in network) there is next to none.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from dataset import DataError
from model import ModelConfig, build

from streamssm.export.layers import Sequential

#: weights of a block that read its inner channels (their columns), and that make two halves of them
READS = ("out_proj.weight", "x_proj.weight", "fc2.weight")
HALVES = ("in_proj.weight", "fc1.weight")
WRITES = ("out_proj.weight", "fc2.weight")


def grown(network: Sequential, small: ModelConfig, large: ModelConfig) -> Sequential:
    """A network of the sizes of `large` that gives, to rounding, what `network` (of `small`) gives.

    Raises:
        DataError: something other than `expand`, `mlp_hidden` and blocks at the end is larger.
    """
    _require_larger(small, large)
    whole = build(large)
    old, new = network.state_dict(), whole.state_dict()
    moved = len(large.blocks) - len(small.blocks)
    head = 2 + len(small.blocks)  # after the spectrum, the convolution and the blocks
    with torch.no_grad():
        for name, weight in old.items():
            layer, rest = name.split(".", 1)
            target = f"{int(layer) + moved}.{rest}" if int(layer) >= head else name
            _put(new[target], weight, name)
        for name, weight in new.items():
            if head <= int(name.split(".", 1)[0]) < head + moved and name.endswith(WRITES):
                weight.zero_()
    return whole


def _put(into: torch.Tensor, weight: torch.Tensor, name: str) -> None:
    """One trained weight at the beginning of a larger one; columns beyond it are read as nothing."""
    if name.endswith(HALVES):
        for large, small in zip(into.chunk(2), weight.chunk(2), strict=True):
            large[: len(small)] = small
        return
    if name.endswith(READS):
        into.zero_()
    into[tuple(slice(0, n) for n in weight.shape)] = weight


def _require_larger(small: ModelConfig, large: ModelConfig) -> None:
    same = replace(large, expand=small.expand, mlp_hidden=small.mlp_hidden, blocks=small.blocks) == small
    wider = large.expand >= small.expand and large.mlp_hidden >= small.mlp_hidden
    if not (same and wider and large.blocks[: len(small.blocks)] == small.blocks):
        raise DataError(f"cannot grow {small} to {large}: only expand, mlp_hidden and blocks at the end can")
    if "mamba2" in large.blocks:
        raise DataError("cannot grow a network with mamba2 blocks")
