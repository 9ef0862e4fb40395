"""Rendering of frame tables as one Triton kernel, for mixing on CUDA: the same sums as `mixing.Sound`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dataset import HOP
from torch import Tensor

BLOCK = 256  # a power of two that holds a frame


@triton.jit
def _render(audio, source, fraction, speed, loud, y, last, HOP: tl.constexpr, BLOCK: tl.constexpr):
    frame, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    first = tl.load(source + frame)
    at = tl.load(fraction + frame) + tl.load(speed + frame) * k
    whole = tl.floor(at)
    f = at - whole
    i = tl.minimum(tl.maximum(tl.maximum(first, 0) + whole.to(tl.int64), 1), last - 3)
    live = (k < HOP) & (first + k >= k)
    a = tl.load(audio + i - 1, mask=live, other=0).to(tl.float32)
    b = tl.load(audio + i, mask=live, other=0).to(tl.float32)
    c = tl.load(audio + i + 1, mask=live, other=0).to(tl.float32)
    d = tl.load(audio + i + 2, mask=live, other=0).to(tl.float32)
    cubic = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))
    tl.store(y + frame * HOP + k, cubic * (tl.load(loud + frame) / 32768.0), mask=k < HOP)


def interpolate(audio: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
    """Samples int16 and frame tables [B, T] -> sound [B, S]."""
    source, *others = (table.contiguous() for table in tables)
    y = torch.empty(source.shape[0], source.shape[1] * HOP, device=audio.device)
    _render[(source.numel(),)](audio, source, *others, y, len(audio), HOP, BLOCK, num_warps=4)
    return y


def install() -> None:
    """Let pools on CUDA use it."""
    import mixing

    plain = mixing.interpolate

    def choose(audio: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        return (interpolate if audio.is_cuda else plain)(audio, tables)

    mixing.interpolate = choose
