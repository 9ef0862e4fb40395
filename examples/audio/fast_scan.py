"""Mamba's scan and convolution as fused Triton kernels, for training on CUDA: the same sums as in torch.

`install()` makes every Mamba layer use them. Only training speed depends on this file.

    delta = softplus(dt + bias)
    h_t   = exp(delta_t A) h_{t-1} + delta_t x_t B_t
    y_t   = (sum_n C_tn h_tn + D x_t) silu(z_t)

Letters: b batch, T frames, N state size, D channels. A program owns one row and BLOCK channels,
keeps h [N, BLOCK] in registers and walks through time; the way back reads the stored states
[b, T + 1, N, D], of which the first is the one the call began with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32


@triton.jit
def _softplus(v):
    return tl.where(v > 20.0, v, tl.log(1.0 + tl.exp(tl.minimum(v, 20.0))))


@triton.jit
def _forward(
    x, dt, z, A, B, C, skip, bias, y, states, T, D, x_step, z_step,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, N)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = d < D
    nd, tile = n[:, None] * D + d[None], live[None] & (n[:, None] < N)
    a = tl.load(A + nd, mask=tile, other=0.0)
    D_skip, shift = tl.load(skip + d, mask=live, other=0.0), tl.load(bias + d, mask=live, other=0.0)
    h = tl.load(states + row * (T + 1) * N * D + nd, mask=tile, other=0.0)
    at = row * T
    x1, dt1 = (
        tl.load(x + at * x_step + d, mask=live, other=0.0),
        tl.load(dt + at * D + d, mask=live, other=0.0),
    )
    z1 = tl.load(z + at * z_step + d, mask=live, other=0.0)
    b1, c1 = tl.load(B + at * N + n), tl.load(C + at * N + n)
    for t in range(T):
        u, raw, gate, b, c = x1, dt1, z1, b1, c1
        at = row * T + tl.minimum(t + 1, T - 1)  # the next item is on its way while this one is worked on
        x1 = tl.load(x + at * x_step + d, mask=live, other=0.0)
        dt1 = tl.load(dt + at * D + d, mask=live, other=0.0)
        z1 = tl.load(z + at * z_step + d, mask=live, other=0.0)
        b1, c1 = tl.load(B + at * N + n), tl.load(C + at * N + n)
        step = _softplus(raw + shift)
        h = tl.exp(step[None] * a) * h + (step * u)[None] * b[:, None]
        tl.store(states + (row * (T + 1) + t + 1) * N * D + nd, h, mask=tile)
        total = tl.sum(h * c[:, None], axis=0) + D_skip * u
        tl.store(y + (row * T + t) * D + d, total * gate * tl.sigmoid(gate), mask=live)


@triton.jit
def _backward(
    x, dt, z, A, B, C, skip, bias, states, gy,
    g_x, g_dt, g_z, g_A, g_B, g_C, g_skip, g_bias, T, D, x_step, z_step,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part, n = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, N)
    rows = tl.num_programs(0)
    d = part * BLOCK + tl.arange(0, BLOCK)
    live = d < D
    nd, tile = n[:, None] * D + d[None], live[None] & (n[:, None] < N)
    a = tl.load(A + nd, mask=tile, other=0.0)
    D_skip, shift = tl.load(skip + d, mask=live, other=0.0), tl.load(bias + d, mask=live, other=0.0)
    gh, ga = tl.zeros([N, BLOCK], tl.float32), tl.zeros([N, BLOCK], tl.float32)
    gs, gb = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    h = tl.load(states + (row * (T + 1) + T) * N * D + nd, mask=tile, other=0.0)
    at = row * T + T - 1
    x1, dt1 = (
        tl.load(x + at * x_step + d, mask=live, other=0.0),
        tl.load(dt + at * D + d, mask=live, other=0.0),
    )
    z1, g1 = (
        tl.load(z + at * z_step + d, mask=live, other=0.0),
        tl.load(gy + at * D + d, mask=live, other=0.0),
    )
    b1, c1 = tl.load(B + at * N + n), tl.load(C + at * N + n)
    h1 = tl.load(states + (at + row) * N * D + nd, mask=tile, other=0.0)
    for back in range(T):
        now = row * T + T - 1 - back
        u, raw, gate, g, b, c, before = x1, dt1, z1, g1, b1, c1, h1
        at = row * T + tl.maximum(T - 2 - back, 0)
        x1 = tl.load(x + at * x_step + d, mask=live, other=0.0)
        dt1 = tl.load(dt + at * D + d, mask=live, other=0.0)
        z1 = tl.load(z + at * z_step + d, mask=live, other=0.0)
        g1 = tl.load(gy + at * D + d, mask=live, other=0.0)
        b1, c1 = tl.load(B + at * N + n), tl.load(C + at * N + n)
        h1 = tl.load(states + (at + row) * N * D + nd, mask=tile, other=0.0)
        step, sigma = _softplus(raw + shift), tl.sigmoid(gate)
        total = tl.sum(h * c[:, None], axis=0) + D_skip * u
        tl.store(g_z + now * D + d, g * total * sigma * (1 + gate * (1 - sigma)), mask=live)
        inner = g * gate * sigma
        gh += c[:, None] * inner[None]
        partial = ((part * rows + row) * T + T - 1 - back) * N + n
        tl.store(g_C + partial, tl.sum(h * inner[None], axis=1))
        tl.store(g_B + partial, tl.sum(gh * (step * u)[None], axis=1))
        into = tl.sum(gh * b[:, None], axis=0)
        decay = tl.exp(step[None] * a)
        slope = gh * before * decay
        tl.store(g_x + now * D + d, into * step + inner * D_skip, mask=live)
        g_raw = (tl.sum(slope * a, axis=0) + into * u) * tl.sigmoid(raw + shift)
        tl.store(g_dt + now * D + d, g_raw, mask=live)
        ga += slope * step[None]
        gs += inner * u
        gb += g_raw
        gh *= decay
        h = before
    tl.store(g_A + row * N * D + nd, ga, mask=tile)
    tl.store(g_skip + row * D + d, gs, mask=live)
    tl.store(g_bias + row * D + d, gb, mask=live)


def _rows(x: Tensor) -> Tensor:
    """x [b, T, D] as it is if only its items are spread out, else in one piece."""
    return x if x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, skip, bias, z, h0):
        x, z = _rows(x), _rows(z)
        dt, A, B, C = (t.contiguous() for t in (dt, A, B, C))
        (b, T, D), N = x.shape, A.shape[0]
        y, states = x.new_empty(b, T, D), x.new_empty(b, T + 1, N, D)
        states[:, 0] = h0
        grid = (b, triton.cdiv(D, BLOCK))
        steps = (T, D, x.stride(1), z.stride(1))
        _forward[grid](x, dt, z, A, B, C, skip, bias, y, states, *steps, N, BLOCK, num_warps=1)
        ctx.save_for_backward(x, dt, z, A, B, C, skip, bias, states)
        last = states[:, -1].clone()
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, gy, _):
        x, dt, z, A, B, C, skip, bias, states = ctx.saved_tensors
        (b, T, D), N = x.shape, A.shape[0]
        grid = (b, triton.cdiv(D, BLOCK))
        g_x, g_dt, g_z = (x.new_empty(b, T, D) for _ in range(3))
        g_A, (g_B, g_C) = x.new_empty(b, N, D), (B.new_empty(grid[1], *B.shape) for _ in range(2))
        g_skip, g_bias = (x.new_empty(b, D) for _ in range(2))
        _backward[grid](
            x, dt, z, A, B, C, skip, bias, states, gy.contiguous(),
            g_x, g_dt, g_z, g_A, g_B, g_C, g_skip, g_bias, T, D, x.stride(1), z.stride(1),
            N, BLOCK, num_warps=1,
        )  # fmt: skip
        sums = (g_A.sum(0), g_B.sum(0), g_C.sum(0), g_skip.sum(0), g_bias.sum(0))
        return g_x, g_dt, *sums, g_z, None


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, z: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Drop-in for `streamssm.export.ops.selective_scan`; states get and give no gradient."""
    return _Scan.apply(x, dt, A, B, C, D, dt_bias, z, state)


@triton.jit
def _sum_taps(x, past, weight, bias, row, t, d, live, T, D, stride, K: tl.constexpr):
    acc = tl.load(bias + d, mask=d < D, other=0.0)[None] + tl.zeros(live.shape, tl.float32)
    for k in tl.static_range(K):
        at = t + (k - K + 1)
        w = tl.load(weight + k * D + d, mask=d < D, other=0.0)
        inside, before = (at >= 0)[:, None] & live, (at < 0)[:, None] & live
        old = past + (row * (K - 1) + at + K - 1)[:, None] * D + d[None]
        now = tl.load(x + (row * T + at)[:, None] * stride + d[None], mask=inside, other=0.0)
        acc += w[None] * (now + tl.load(old, mask=before, other=0.0))
    return acc


@triton.jit
def _conv_forward(
    x, past, weight, bias, y, T, D, stride, K: tl.constexpr, TB: tl.constexpr, DB: tl.constexpr
):
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(2) * DB + tl.arange(0, DB)
    t = tl.program_id(1) * TB + tl.arange(0, TB)
    live = (t < T)[:, None] & (d < D)[None]
    s = _sum_taps(x, past, weight, bias, row, t, d, live, T, D, stride, K)
    tl.store(y + (row * T + t)[:, None] * D + d[None], s * tl.sigmoid(s), mask=live)


@triton.jit
def _conv_slopes(
    x, past, weight, bias, gy, gs, g_weight, T, D, stride,
    K: tl.constexpr, TB: tl.constexpr, DB: tl.constexpr,
):  # fmt: skip
    """The gradient before SiLU, and each program's share of the gradients of the taps and the bias."""
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(2) * DB + tl.arange(0, DB)
    t = tl.program_id(1) * TB + tl.arange(0, TB)
    live = (t < T)[:, None] & (d < D)[None]
    s = _sum_taps(x, past, weight, bias, row, t, d, live, T, D, stride, K)
    at_y = (row * T + t)[:, None] * D + d[None]
    gate = tl.sigmoid(s)
    g = tl.load(gy + at_y, mask=live, other=0.0) * gate * (1 + s * (1 - gate))
    tl.store(gs + at_y, g, mask=live)
    share = g_weight + (row * tl.num_programs(1) + tl.program_id(1)) * (K + 1) * D + d
    for k in tl.static_range(K):
        at = t + (k - K + 1)
        inside, before = (at >= 0)[:, None] & live, (at < 0)[:, None] & live
        old = past + (row * (K - 1) + at + K - 1)[:, None] * D + d[None]
        seen = tl.load(x + (row * T + at)[:, None] * stride + d[None], mask=inside, other=0.0)
        seen += tl.load(old, mask=before, other=0.0)
        tl.store(share + k * D, tl.sum(g * seen, axis=0), mask=d < D)
    tl.store(share + K * D, tl.sum(g, axis=0), mask=d < D)


@triton.jit
def _conv_backward(gs, weight, gx, T, D, K: tl.constexpr, TB: tl.constexpr, DB: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(2) * DB + tl.arange(0, DB)
    t = tl.program_id(1) * TB + tl.arange(0, TB)
    live = (t < T)[:, None] & (d < D)[None]
    acc = tl.zeros(live.shape, tl.float32)
    for k in tl.static_range(K):
        at = t + (K - 1 - k)
        w = tl.load(weight + k * D + d, mask=d < D, other=0.0)
        g = tl.load(gs + (row * T + at)[:, None] * D + d[None], mask=(at < T)[:, None] & live, other=0.0)
        acc += w[None] * g
    tl.store(gx + (row * T + t)[:, None] * D + d[None], acc, mask=live)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, past):
        weight, past = weight.contiguous(), past.contiguous()
        (b, T, D), K = x.shape, weight.shape[0]
        if x.stride(2) != 1 or x.stride(0) != T * x.stride(1):
            x = x.contiguous()
        y, grid = x.new_empty(b, T, D), (b, triton.cdiv(T, 32), triton.cdiv(D, 64))
        _conv_forward[grid](x, past, weight, bias, y, T, D, x.stride(1), K, 32, 64)
        ctx.save_for_backward(x, weight, bias, past)
        return y

    @staticmethod
    def backward(ctx, gy):
        x, weight, bias, past = ctx.saved_tensors
        (b, T, D), K = x.shape, weight.shape[0]
        grid = (b, triton.cdiv(T, 32), triton.cdiv(D, 64))
        gs, gx = (gy.new_empty(b, T, D) for _ in range(2))
        shares = gy.new_empty(b * grid[1], K + 1, D)
        _conv_slopes[grid](x, past, weight, bias, gy.contiguous(), gs, shares, T, D, x.stride(1), K, 32, 64)
        _conv_backward[grid](gs, weight, gx, T, D, K, 32, 64)
        total = shares.sum(0)
        return gx, total[:K], total[K], None


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Drop-in for `streamssm.export.ops.causal_conv1d` with SiLU; the state gets no gradient."""
    K, T = weight.shape[0], x.shape[1]
    kept = torch.cat([state, x[:, -(K - 1) :].detach()], dim=1)[:, -(K - 1) :] if T else state
    return _Conv.apply(x, weight, bias, state), kept.contiguous()


def install() -> None:
    """Let Mamba layers on CUDA use these; on other devices, and elsewhere, layers keep their own."""
    import fast_render

    from streamssm.export.layers import conv, mamba

    fast_render.install()
    plain_scan, plain_conv = mamba.selective_scan, conv.causal_conv1d

    def scan(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return (selective_scan if x.is_cuda and x.shape[1] else plain_scan)(x, *rest)

    def convolve(
        x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool = False
    ) -> tuple[Tensor, Tensor]:
        if silu and x.is_cuda and x.shape[1] and x.dtype == torch.float32:
            return causal_conv1d(x, weight, bias, state)
        return plain_conv(x, weight, bias, state, silu)

    mamba.selective_scan, conv.causal_conv1d = scan, convolve
