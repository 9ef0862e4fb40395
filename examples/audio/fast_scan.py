"""A fused selective scan for training on CUDA, in Triton: the same sums as the plain torch one.

`install()` makes every Mamba layer use it. Only training speed depends on this file.

    h_t = exp(delta_t A) h_{t-1} + u_t B_t,   y_t = sum_n C_tn h_tn,   u = delta * x

Letters: b batch, T frames, N state size, D channels. A program owns one row and BLOCK channels,
keeps h [N, BLOCK] in registers and walks through time; the way back reads the stored states
[b, T + 1, N, D], of which the first is the one the call began with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32


@triton.jit
def _forward(delta, u, A, B, C, y, states, T, D, N: tl.constexpr, BLOCK: tl.constexpr):
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, N)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = d < D
    nd, tile = n[:, None] * D + d[None], live[None] & (n[:, None] < N)
    a = tl.load(A + nd, mask=tile, other=0.0)
    h = tl.load(states + row * (T + 1) * N * D + nd, mask=tile, other=0.0)
    for t in range(T):
        at = row * T + t
        step = tl.load(delta + at * D + d, mask=live, other=0.0)
        inflow = tl.load(u + at * D + d, mask=live, other=0.0)
        b, c = tl.load(B + at * N + n), tl.load(C + at * N + n)
        h = tl.exp(step[None] * a) * h + inflow[None] * b[:, None]
        tl.store(states + (at + row + 1) * N * D + nd, h, mask=tile)
        tl.store(y + at * D + d, tl.sum(h * c[:, None], axis=0), mask=live)


@triton.jit
def _backward(
    delta, u, A, B, C, states, gy, gh_last,
    g_delta, g_u, g_A, g_B, g_C, g_h0, T, D, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part, n = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, N)
    rows = tl.num_programs(0)
    d = part * BLOCK + tl.arange(0, BLOCK)
    live = d < D
    nd, tile = n[:, None] * D + d[None], live[None] & (n[:, None] < N)
    a = tl.load(A + nd, mask=tile, other=0.0)
    gh = tl.load(gh_last + row * N * D + nd, mask=tile, other=0.0)
    ga = tl.zeros([N, BLOCK], tl.float32)
    h = tl.load(states + (row * (T + 1) + T) * N * D + nd, mask=tile, other=0.0)
    for back in range(T):
        t = T - 1 - back
        at = row * T + t
        partial = ((part * rows + row) * T + t) * N + n
        step = tl.load(delta + at * D + d, mask=live, other=0.0)
        inflow = tl.load(u + at * D + d, mask=live, other=0.0)
        g = tl.load(gy + at * D + d, mask=live, other=0.0)
        b, c = tl.load(B + at * N + n), tl.load(C + at * N + n)
        before = tl.load(states + (at + row) * N * D + nd, mask=tile, other=0.0)
        decay = tl.exp(step[None] * a)
        gh += c[:, None] * g[None]
        tl.store(g_C + partial, tl.sum(h * g[None], axis=1))
        tl.store(g_B + partial, tl.sum(gh * inflow[None], axis=1))
        tl.store(g_u + at * D + d, tl.sum(gh * b[:, None], axis=0), mask=live)
        slope = gh * before * decay
        tl.store(g_delta + at * D + d, tl.sum(slope * a, axis=0), mask=live)
        ga += slope * step[None]
        gh *= decay
        h = before
    tl.store(g_A + row * N * D + nd, ga, mask=tile)
    tl.store(g_h0 + row * N * D + nd, gh, mask=tile)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, delta, u, A, B, C, h0):
        tensors = [t.contiguous() for t in (delta, u, A, B, C)]
        (b, T, D), N = delta.shape, A.shape[0]
        y, states = torch.empty_like(tensors[0]), delta.new_empty(b, T + 1, N, D)
        states[:, 0] = h0
        grid = (b, triton.cdiv(D, BLOCK))
        _forward[grid](*tensors, y, states, T, D, N, BLOCK, num_warps=1)
        ctx.save_for_backward(*tensors, states)
        return y, states[:, -1].clone()

    @staticmethod
    def backward(ctx, gy, gh):
        *tensors, states = ctx.saved_tensors
        delta, u, A, B = tensors[:4]
        (b, T, D), N = delta.shape, A.shape[0]
        grid = (b, triton.cdiv(D, BLOCK))
        g_delta, g_u, g_h0 = torch.empty_like(delta), torch.empty_like(u), delta.new_empty(b, N, D)
        g_A = torch.empty_like(g_h0)
        g_B, g_C = (B.new_empty(grid[1], *B.shape) for _ in range(2))
        outs = (g_delta, g_u, g_A, g_B, g_C, g_h0)
        gradients = (gy.contiguous(), gh.contiguous())
        _backward[grid](*tensors, states, *gradients, *outs, T, D, N, BLOCK, num_warps=1)
        return g_delta, g_u, g_A.sum(0), g_B.sum(0), g_C.sum(0), g_h0


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, z: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Drop-in for `streamssm.export.ops.selective_scan`: x, dt, z [b, T, D], A [N, D]."""
    delta = F.softplus(dt + dt_bias)
    y, last = _Scan.apply(delta, delta * x, A, B, C, state)
    return (y + D * x) * F.silu(z), last


def install() -> None:
    """Let Mamba layers on CUDA use this scan; on other devices they keep their own."""
    from streamssm.export.layers import mamba

    plain = mamba.selective_scan

    def choose(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return (selective_scan if x.is_cuda and x.shape[1] else plain)(x, *rest)

    mamba.selective_scan = choose
