"""What models are built from: norms, the Mamba and Mamba-2 mixers, GRU and LSTM.

Weights come as a dict under their checkpoint names; a bias that is absent is not added.
Letters and conventions: see :mod:`streamssm.kernels.reference`. Float64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .reference_ops import (
    Array,
    causal_conv1d,
    causal_conv1d_step,
    f64,
    selective_scan,
    selective_scan_step,
    sigmoid,
    silu,
    softplus,
    state_space_dual,
    state_space_dual_step,
)

Weights = Mapping[str, Array]
State = dict[str, Array]


def rms_norm(
    x: Array,
    weight: Array,
    eps: float = 1e-5,
    gate: Array | None = None,
    norm_before_gate: bool = False,
    group_size: int | None = None,
) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, equation 4), optionally gated.

    Args:
        x: [..., D].
        weight: [D].
        eps: added to the mean square.
        gate: [..., D] before SiLU; None for no gate.
        norm_before_gate: norm(x) * silu(gate) instead of norm(x * silu(gate)); both orders
            are those of state-spaces/mamba layernorm_gated.py.
        group_size: channels that share one mean square; None for all D.

    Raises:
        ValueError: D is not a multiple of group_size.
    """
    x, weight = f64(x, weight)
    D = x.shape[-1]
    size = D if group_size is None else group_size
    if D % size:
        raise ValueError(f"{D} channels do not divide into groups of {size}; choose a divisor of {D}")
    opening = 1.0 if gate is None else silu(gate)
    if not norm_before_gate:
        x = x * opening
    grouped = x.reshape(*x.shape[:-1], D // size, size)
    mean_square = np.mean(grouped**2, axis=-1, keepdims=True)
    y: Array = (grouped / np.sqrt(mean_square + eps)).reshape(x.shape) * weight
    return y * opening if norm_before_gate else y


def _linear(x: Array, weights: Weights, name: str) -> Array:
    """x @ W^T + b, with W [out, in] as torch stores it."""
    y: Array = x @ f64(weights[f"{name}.weight"])[0].T
    return y + f64(weights[f"{name}.bias"])[0] if f"{name}.bias" in weights else y


def _split(x: Array, *sizes: int) -> list[Array]:
    """Cut the last axis into parts of these sizes."""
    return np.split(x, np.cumsum(sizes)[:-1], axis=-1)


def _filters(weights: Weights) -> tuple[Array, Array]:
    """conv1d.weight [D, 1, K] as [K, D], and its bias or zeros."""
    (weight,) = f64(weights["conv1d.weight"])
    (bias,) = f64(weights.get("conv1d.bias", np.zeros(len(weight))))
    return weight[:, 0].T, bias


# ----------------------------------------------------------------------- Mamba
#
# Source: Gu & Dao 2023, section 3.4 and figure 3; names of state-spaces/mamba mamba_simple.py.


def mamba_mixer(u: Array, weights: Weights, state: State | None = None) -> tuple[Array, State]:
    """The Mamba mixer over a whole sequence.

    Args:
        u: [B, T, d_model].
        weights: in_proj.weight [2D, d_model], conv1d.weight [D, 1, K], x_proj.weight [R+2N, D]
            (R the rank of dt here), dt_proj.weight [D, R], dt_proj.bias [D], A_log [D, N], D [D],
            out_proj.weight [d_model, D]; conv1d.bias, in_proj.bias and out_proj.bias if present.
        state: {"conv": [B, K-1, D], "ssm": [B, N, D]}; None at the start of a stream.

    Returns:
        y [B, T, d_model] and the next state.
    """
    return _mamba(u, weights, state, causal_conv1d, selective_scan)


def mamba_mixer_step(u: Array, weights: Weights, state: State | None = None) -> tuple[Array, State]:
    """The Mamba mixer for one item u [B, d_model]; see :func:`mamba_mixer`."""
    return _mamba(u, weights, state, causal_conv1d_step, selective_scan_step)


def _mamba(
    u: Array, weights: Weights, state: State | None, conv: Callable[..., Any], scan: Callable[..., Any]
) -> tuple[Array, State]:
    (u,), (A_log, D) = f64(u), f64(weights["A_log"], weights["D"])
    taps, conv_bias = _filters(weights)
    channels, N = A_log.shape
    if state is None:
        state = _zeros(u, conv=(len(taps) - 1, channels), ssm=(N, channels))
    x, z = _split(_linear(u, weights, "in_proj"), channels, channels)
    x, conv_state = conv(x, taps, conv_bias, state["conv"], silu=True)
    low_rank, B, C = _split(_linear(x, weights, "x_proj"), np.shape(weights["dt_proj.weight"])[1], N, N)
    dt = low_rank @ f64(weights["dt_proj.weight"])[0].T  # its bias goes under the softplus, in the scan
    y, ssm_state = scan(x, dt, -np.exp(A_log).T, B, C, D, weights["dt_proj.bias"], z, state["ssm"])
    return _linear(y, weights, "out_proj"), {"conv": conv_state, "ssm": ssm_state}


# --------------------------------------------------------------------- Mamba-2
#
# Source: Dao & Gu 2024, section 7 and figure 6; names of state-spaces/mamba mamba2.py.


def mamba2_mixer(
    u: Array,
    weights: Weights,
    state: State | None = None,
    *,
    ngroups: int = 1,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    norm_before_gate: bool = False,
    norm_group_size: int | None = None,
    eps: float = 1e-5,
) -> tuple[Array, State]:
    """The Mamba-2 mixer over a whole sequence.

    Args:
        u: [B, T, d_model].
        weights: in_proj.weight [2D + 2GN + H, d_model] in the order z, x, B, C, dt,
            conv1d.weight [D + 2GN, 1, K], dt_bias [H], A_log [H], D [H] or [H * P],
            out_proj.weight [d_model, D]; norm.weight [D] if the gate is normed; conv1d.bias,
            in_proj.bias and out_proj.bias if present. D = H * P.
        state: {"conv": [B, K-1, D + 2GN], "ssm": [B, H, N, P]}; None at the start of a stream.
        ngroups: G, sets of B and C.
        dt_limit: dt is clipped to this range after the softplus, in the step as in the sequence.
        norm_before_gate: see :func:`rms_norm`.
        norm_group_size: channels that share one mean square; None for D / ngroups, as in
            mamba_ssm and transformers 5.
        eps: of the norm.

    Returns:
        y [B, T, d_model] and the next state.
    """
    norm = {"norm_before_gate": norm_before_gate, "group_size": norm_group_size, "eps": eps}
    return _mamba2(u, weights, state, ngroups, dt_limit, norm, causal_conv1d, state_space_dual)


def mamba2_mixer_step(
    u: Array,
    weights: Weights,
    state: State | None = None,
    *,
    ngroups: int = 1,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    norm_before_gate: bool = False,
    norm_group_size: int | None = None,
    eps: float = 1e-5,
) -> tuple[Array, State]:
    """The Mamba-2 mixer for one item u [B, d_model]; see :func:`mamba2_mixer`."""
    norm = {"norm_before_gate": norm_before_gate, "group_size": norm_group_size, "eps": eps}
    return _mamba2(u, weights, state, ngroups, dt_limit, norm, causal_conv1d_step, state_space_dual_step)


def _mamba2(
    u: Array,
    weights: Weights,
    state: State | None,
    G: int,
    dt_limit: tuple[float, float],
    norm: dict[str, Any],
    conv: Callable[..., Any],
    ssd: Callable[..., Any],
) -> tuple[Array, State]:
    (u,), (A_log, dt_bias, skip) = f64(u), f64(weights["A_log"], weights["dt_bias"], weights["D"])
    taps, conv_bias = _filters(weights)
    H, channels = len(A_log), np.shape(weights["out_proj.weight"])[1]
    P, N = channels // H, (taps.shape[1] - channels) // (2 * G)
    if state is None:
        state = _zeros(u, conv=(len(taps) - 1, taps.shape[1]), ssm=(H, N, P))
    z, xBC, dt = _split(_linear(u, weights, "in_proj"), channels, taps.shape[1], H)
    xBC, conv_state = conv(xBC, taps, conv_bias, state["conv"], silu=True)
    x, B, C = _split(xBC, channels, G * N, G * N)
    dt = np.clip(softplus(dt + dt_bias), *dt_limit)
    skip = np.broadcast_to(skip.reshape(H, -1), (H, P))
    x, B, C = _rows(x, H, P), _rows(B, G, N), _rows(C, G, N)
    y, ssm_state = ssd(x, dt, -np.exp(A_log), B, C, skip, state["ssm"])
    y = y.reshape(z.shape)
    if "norm.weight" in weights:
        group_size = norm["group_size"] or channels // G
        y = rms_norm(y, weights["norm.weight"], gate=z, **norm | {"group_size": group_size})
    else:
        y = y * silu(z)
    return _linear(y, weights, "out_proj"), {"conv": conv_state, "ssm": ssm_state}


def _rows(x: Array, rows: int, columns: int) -> Array:
    """Split the last axis in two."""
    return x.reshape(*x.shape[:-1], rows, columns)


def _zeros(u: Array, **shapes: tuple[int, ...]) -> State:
    """The state of streams that have seen nothing, one for each row of u."""
    return {name: np.zeros((len(u), *shape)) for name, shape in shapes.items()}


# ----------------------------------------------------------------- GRU and LSTM


def gru_step(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
    state: Array,
) -> tuple[Array, Array]:
    """One GRU item in torch's form: the reset gate acts after the matrix product.

        r, i = sigmoid(W x + b + U h + c)      n = tanh(W_n x + b_n + r (U_n h + c_n))
        h = (1 - i) n + i h

    Source: torch.nn.GRU (the variant of Cho et al. 2014 in arXiv v1 of that paper, as cuDNN).

    Args:
        x: [B, I].
        weight_ih: [3h, I], rows in the order reset, update (called z by torch), new.
        weight_hh: [3h, h].
        bias_ih: [3h].
        bias_hh: [3h].
        state: [B, h].

    Returns:
        y [B, h] and the next state, which is y.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh, h = f64(x, weight_ih, weight_hh, bias_ih, bias_hh, state)
    of_x = np.split(x @ weight_ih.T + bias_ih, 3, axis=-1)
    of_h = np.split(h @ weight_hh.T + bias_hh, 3, axis=-1)
    reset, update = sigmoid(of_x[0] + of_h[0]), sigmoid(of_x[1] + of_h[1])
    new = np.tanh(of_x[2] + reset * of_h[2])
    h = (1.0 - update) * new + update * h
    return h, h


def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Whole sequence x [B, T, I] -> y [B, T, h] and the next state; non-linear in h, so step by step."""
    x, h = f64(x, state)
    y = np.empty((*x.shape[:2], h.shape[-1]))
    for t in range(x.shape[1]):
        y[:, t], h = gru_step(x[:, t], weight_ih, weight_hh, bias_ih, bias_hh, h)
    return y, h.copy()


def lstm_step(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
    h: Array,
    c: Array,
) -> tuple[Array, Array, Array]:
    """One LSTM item.

        c = f c + i g        h = o tanh(c)        i, f, o = sigmoid(...), g = tanh(...)

    Source: torch.nn.LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000).

    Args:
        x: [B, I].
        weight_ih: [4h, I], rows in the order input, forget, cell, output.
        weight_hh: [4h, h].
        bias_ih: [4h].
        bias_hh: [4h].
        h: [B, h] output state.
        c: [B, h] cell state.

    Returns:
        y [B, h], then the next h (which is y) and c.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = f64(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c)
    gates = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, h, c


def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
    h: Array,
    c: Array,
) -> tuple[Array, Array, Array]:
    """Whole sequence x [B, T, I] -> y [B, T, h], then the next h and c; step by step, as for the GRU."""
    x, h, c = f64(x, h, c)
    y = np.empty((*x.shape[:2], h.shape[-1]))
    for t in range(x.shape[1]):
        y[:, t], h, c = lstm_step(x[:, t], weight_ih, weight_hh, bias_ih, bias_hh, h, c)
    return y, h.copy(), c.copy()
