"""The streaming operators for torch: differentiable plain torch when training or running
eagerly, one ONNX node each when exported.

Shapes: B batch, T items, D channels, N state size, K conv width, H heads, P head dim,
G groups, W window, R rotary dims; in log_mel T samples, L window, M bands, P past samples; in
expert_linear E experts, R rows.
Definitions and sources: ``streamssm.kernels.reference``.

Numeric policy: inputs are brought to the state's dtype (float32), the result returns in the
dtype of the data, under autocast too. The matrix forms multiply masked items by zero, so a
NaN in a later item of the *same* call reaches earlier ones: padding belongs outside the call
(:func:`streamssm.export.layers.ragged.forward_ragged`).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SSD_CHUNK = 64

Function = Callable[..., Any]


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Autocast switched off on x's device: it would run the recurrence in 16 bits."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _operator(fake: Function) -> Callable[[Function], Function]:
    """Register a function as an operator of torch, whose results have the shapes of ``fake``'s.

    It is the operator only while torch exports, or where tensors are shapes without content;
    otherwise its own torch code runs, for autograd.
    """

    def register(function: Function) -> Function:
        operator = torch.library.custom_op(f"streamssm::{function.__name__}", function, mutates_args=())
        operator.register_fake(fake)

        @functools.wraps(function)
        def call(x: Tensor, *rest: Any, **named: Any) -> Any:
            if torch.compiler.is_exporting() or x.is_meta:
                return operator(x, *rest, **named)
            with full_precision(x):
                return function(x, *rest, **named)

        return call

    return register


def _like(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(torch.empty_like(state) for state in states)


def _hidden(x: Tensor, h: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], h.shape[1])


@_operator(lambda x, weight, bias, state, silu=False: _like(x, state))
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution, x [B, T, D], weight [K, D], state [B, K-1, D]."""
    dtype, T = state.dtype, x.shape[1]
    full = torch.cat([state, x.to(dtype)], dim=1)
    y = bias.to(dtype).expand(x.shape)
    for tap in range(weight.shape[0]):
        y = y + full[:, tap : tap + T] * weight[tap].to(dtype)
    return (F.silu(y) if silu else y).to(x.dtype), full[:, T:].clone()


def _linear_recurrence(decay: Tensor, inflow: Tensor, h: Tensor) -> Tensor:
    """All h_t = decay_t h_{t-1} + inflow_t, [B, T, ...], in about 2 sqrt(T) sequential steps.

    T is cut into chunks that advance side by side from a zero state; then the carry runs
    over the chunks. Only products of decays below 1 appear, so nothing overflows.
    """
    batch, T, *rest = inflow.shape
    length = max(1, math.isqrt(T))
    chunks = -(-T // length)
    pad = chunks * length - T
    if pad:
        decay = torch.cat([decay, decay.new_ones(batch, pad, *rest)], dim=1)
        inflow = torch.cat([inflow, inflow.new_zeros(batch, pad, *rest)], dim=1)
    decays = decay.reshape(batch, chunks, length, *rest).unbind(2)
    inflows = inflow.reshape(batch, chunks, length, *rest).unbind(2)
    within, product = [inflows[0]], [decays[0]]
    for a, u in zip(decays[1:], inflows[1:], strict=True):
        within.append(a * within[-1] + u)
        product.append(a * product[-1])
    carries = []
    for chunk in range(chunks):
        carries.append(h)
        h = product[-1][:, chunk] * h + within[-1][:, chunk]
    states = torch.stack(within, 2) + torch.stack(product, 2) * torch.stack(carries, 1)[:, :, None]
    return states.reshape(batch, chunks * length, *rest)[:, :T]


@_operator(lambda x, dt, A, B, C, D, dt_bias, z, state: _like(x, state))
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gated selective scan of Mamba; x, dt, z [B, T, D], A [N, D], B, C [B, T, N], state [B, N, D]."""
    if x.shape[1] == 0:
        return x.clone(), state.clone()
    xs, dts, zs = x.to(state.dtype), dt.to(state.dtype), z.to(state.dtype)
    Bs, Cs = B.to(state.dtype), C.to(state.dtype)
    delta = F.softplus(dts + dt_bias)
    decay = torch.exp(delta[:, :, None] * A)
    inflow = Bs[..., None] * (delta * xs)[:, :, None]
    h = _linear_recurrence(decay, inflow, state)
    y = torch.einsum("btn,btnd->btd", Cs, h) + D * xs
    return (y * F.silu(zs)).to(x.dtype), h[:, -1].clone()


@_operator(lambda x, dt, A, B, C, D, state: _like(x, state))
def state_space_dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan of Mamba-2; x [B, T, H, P], dt [B, T, H], B, C [B, T, G, N], D [H, P], state [B, H, N, P]."""
    T, H, G = x.shape[1], x.shape[2], B.shape[2]
    if T == 0:
        return x.clone(), state.clone()
    xs, dts = x.to(state.dtype), dt.to(state.dtype)
    Bs = B.to(state.dtype).repeat_interleave(H // G, dim=2)
    Cs = C.to(state.dtype).repeat_interleave(H // G, dim=2)
    Q = min(T, SSD_CHUNK)
    u, b, c = (_chunked(tensor, Q) for tensor in (xs * dts[..., None], Bs, Cs))
    log_decay = _chunked((dts * A)[..., None], Q)
    since_start = log_decay.cumsum(-2).exp()
    # the decay from item j to item i, summed for each j by itself: as a difference of two
    # running sums it would lose a small dt that follows a huge one
    lower = torch.ones(Q, Q, dtype=torch.bool, device=x.device).tril()
    between = log_decay.expand(*log_decay.shape[:-1], Q).masked_fill(~lower.tril(-1), 0.0).cumsum(-2)
    decay = between.masked_fill(~lower, -math.inf).exp()
    within = (c @ b.transpose(-1, -2) * decay) @ u
    gained = (b * decay[..., -1, :, None]).transpose(-1, -2) @ u
    whole = since_start[..., -1:, :]
    carries, h = [], state
    for chunk in range(u.shape[1]):
        carries.append(h)
        h = whole[:, chunk] * h + gained[:, chunk]
    y = within + (c * since_start) @ torch.stack(carries, 1)
    y = y.transpose(2, 3).reshape(x.shape[0], -1, *x.shape[2:])[:, :T] + xs * D
    return y.to(x.dtype), h


def _chunked(x: Tensor, Q: int) -> Tensor:
    """[B, T, H, X] -> [B, chunks, H, Q, X], padded with zeros (dt = 0 moves no state)."""
    pad = -x.shape[1] % Q
    return F.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, Q)).transpose(2, 3)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotary embedding of the first R dims of x [..., dh], pairs (d, d + R/2), angle [..., R/2]."""
    half = angle.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


@_operator(lambda q, k, v, inv_freq, key, value, position, scale: _like(q, key, value, position))
def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Causal attention to the last W items; q [B, T, Hq, dh], k, v [B, T, Hkv, dh],
    key, value [B, Hkv, W, dh] (a ring, un-rotated), position [B] int64."""
    T, W, Hq, Hkv = q.shape[1], key.shape[2], q.shape[2], key.shape[1]
    slot = torch.arange(W, device=q.device)
    past = (position[:, None] + slot) % W
    keys = torch.cat([_take(key, past), k.to(key.dtype).transpose(1, 2)], dim=2)
    values = torch.cat([_take(value, past), v.to(key.dtype).transpose(1, 2)], dim=2)
    kept = W + T - 1 - (position[:, None] + T - 1 - slot) % W
    next_state = _take(keys, kept), _take(values, kept), position + T
    if T == 0:
        return q.clone(), *next_state
    # queries go in chunks of at most W items, each beside the W items before it and its own
    Q = min(T, W)
    pad = -T % Q
    queries = F.pad(q.to(key.dtype).transpose(1, 2), (0, 0, 0, pad)).unflatten(2, (-1, Q))
    keys, values = (F.pad(a, (0, 0, 0, pad)).unfold(2, W + Q, Q).transpose(3, 4) for a in (keys, values))
    place = torch.arange(W + Q, device=q.device)
    angle = place[:, None].to(key.dtype) * inv_freq.to(key.dtype)
    queries = _rotate(queries, angle[W:]) * scale
    keys = _rotate(keys, angle)
    query = place[:Q, None]
    in_window = (place > query) & (place <= query + W)
    chunk_start = torch.arange(queries.shape[2], device=q.device) * Q
    exists = place >= (W - position[:, None] - chunk_start)[..., None]
    visible = (in_window & exists[:, :, None])[:, None, None]
    grouped = queries.unflatten(1, (Hkv, Hq // Hkv))
    scores = grouped @ keys[:, :, None].transpose(-1, -2)
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    y = (weights @ values[:, :, None]).flatten(3, 4).flatten(1, 2)[:, :, :T]
    return y.transpose(1, 2).to(q.dtype), *next_state


def _take(ring: Tensor, index: Tensor) -> Tensor:
    """ring [B, H, S, dh], index [B, W] -> [B, H, W, dh]."""
    shape = (-1, ring.shape[1], -1, ring.shape[3])
    return ring.gather(2, index[:, None, :, None].expand(shape))


def _bands(x: Tensor, filters: Tensor, hop: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // hop, filters.shape[1])


@_operator(lambda x, window, filters, past, hop, n_fft, eps: (_bands(x, filters, hop), *_like(past)))
def log_mel(
    x: Tensor, window: Tensor, filters: Tensor, past: Tensor, hop: int, n_fft: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Logarithm of mel power of frames that end with each hop; x [B, T], window [L],
    filters [n_fft // 2 + 1, M], past [B, P], P >= L - hop -> y [B, T / hop, M]."""
    dtype, T, P, L = past.dtype, x.shape[1], past.shape[1], window.shape[0]
    full = torch.cat([past, x.to(dtype)], dim=1)
    following = full[:, T:].clone()
    if T == 0:
        return _bands(x, filters, hop), following
    frames = full[:, P + hop - L :].unfold(1, L, hop)
    spectrum = torch.fft.rfft(frames * window.to(dtype), n_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.log(power @ filters.to(dtype) + eps).to(x.dtype), following


@_operator(lambda x, weight_ih, weight_hh, bias_ih, bias_hh, h: (_hidden(x, h), *_like(h)))
def gru(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """One GRU layer with torch's weight layout (gates r, z, n); x [B, T, I], h [B, D]."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], 0, h.shape[1]), h.clone()
    weights = [weight.to(h.dtype) for weight in (weight_ih, weight_hh, bias_ih, bias_hh)]
    y, last = torch.gru(x.to(h.dtype), h[None], weights, True, 1, 0.0, False, False, True)
    return y.to(x.dtype), last[0]


@_operator(lambda x, weight_ih, weight_hh, bias_ih, bias_hh, h, c: (_hidden(x, h), *_like(h, c)))
def lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer with torch's weight layout (gates i, f, g, o); x [B, T, I], h, c [B, D]."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], 0, h.shape[1]), h.clone(), c.clone()
    weights = [weight.to(h.dtype) for weight in (weight_ih, weight_hh, bias_ih, bias_hh)]
    y, last_h, last_c = torch.lstm(
        x.to(h.dtype), (h[None], c[None]), weights, True, 1, 0.0, False, False, True
    )
    return y.to(x.dtype), last_h[0], last_c[0]


@_operator(lambda x, counts, weights: x.new_empty(x.shape[0], weights[0].shape[0]))
def expert_linear(x: Tensor, counts: Tensor, weights: list[Tensor]) -> Tensor:
    """Rows of x [R, in], sorted by expert, each times its expert's weight [out, in] -> [R, out].

    counts [E] int64 are the rows of each expert. An expert without rows is not read.
    """
    pieces = zip(x.split(counts.tolist()), weights, strict=True)
    return torch.cat([F.linear(piece, weight.to(x.dtype)) for piece, weight in pieces])
