"""CausalConv1d, SelectiveScan and StateSpaceDual, each for one item and for a whole sequence.

Letters and conventions: see :mod:`streamssm.kernels.reference`. Float64 throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # any dtype comes in, float64 goes out


def f64(*arrays: Array) -> tuple[Array, ...]:
    """The arguments as float64 arrays."""
    return tuple(np.asarray(array, dtype=np.float64) for array in arrays)


# ---------------------------------------------------------------- activations


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), and x itself above 20, where PyTorch and mamba_ssm switch too.

    At the switch the two differ by exp(-20) = 2e-9, so a reference without it would not
    be the function that published models were trained with.
    """
    (x,) = f64(x)
    return np.where(x > 20.0, x, np.logaddexp(0.0, x))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow and to full relative precision on both sides."""
    (x,) = f64(x)
    return np.exp(-np.logaddexp(0.0, -x))


def silu(x: Array) -> Array:
    """x * sigmoid(x) (Elfwing et al. 2017)."""
    (x,) = f64(x)
    return x * sigmoid(x)


# ------------------------------------------------------------------ CausalConv1d
#
#     y_t = bias + sum_k weight[k] * x[t - (K - 1) + k]        the last tap is the present item
#
# Source: the depthwise conv of Mamba (Gu & Dao 2023, section 3.4; Dao-AILab/causal-conv1d).


def causal_conv1d_step(
    x: Array, weight: Array, bias: Array, state: Array, silu: bool = False
) -> tuple[Array, Array]:
    """One item: the sum over taps, as written above.

    Args:
        x: [B, D] the item.
        weight: [K, D], one filter a channel.
        bias: [D].
        state: [B, K-1, D] the items before it, oldest first.
        silu: apply SiLU to the result.

    Returns:
        y [B, D] and the next state [B, K-1, D].
    """
    x, weight, bias, state = f64(x, weight, bias, state)
    y = bias + weight[-1] * x
    for k in range(state.shape[1]):
        y = y + weight[k] * state[:, k]
    state = np.concatenate([state, x[:, None]], axis=1)[:, 1:]
    return _silu_if(y, silu), state


def causal_conv1d(
    x: Array, weight: Array, bias: Array, state: Array, silu: bool = False
) -> tuple[Array, Array]:
    """Whole sequence: every window of K items at once. x [B, T, D]; the rest as in the step."""
    x, weight, bias, state = f64(x, weight, bias, state)
    T, K = x.shape[1], weight.shape[0]
    full = np.concatenate([state, x], axis=1)  # [B, K-1+T, D]
    windows = full[:, np.arange(T)[:, None] + np.arange(K)]  # [B, T, K, D]
    y = bias + np.einsum("btkd,kd->btd", windows, weight)
    return _silu_if(y, silu), full[:, T:]


def _silu_if(y: Array, apply: bool) -> Array:
    return silu(y) if apply else y


# ----------------------------------------------------------------- SelectiveScan
#
#     d = softplus(dt + dt_bias)
#     h = exp(d A) h + d B x                    diagonal: each (n, channel) on its own
#     y = (sum_n C_n h_n + D x) * silu(z)
#
# Source: Gu & Dao 2023, equation 2 and algorithm 2; B takes the Euler step d B, as in
# state-spaces/mamba selective_scan_ref, not the zero-order hold of the paper's equation 4.


def selective_scan_step(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    dt_bias: Array,
    z: Array,
    state: Array,
) -> tuple[Array, Array]:
    """One item of the recurrence.

    Args:
        x: [B, D] the item.
        dt: [B, D] time step before bias and softplus.
        A: [N, D] negative.
        B: [B, N] input projection.
        C: [B, N] output projection.
        D: [D] skip.
        dt_bias: [D].
        z: [B, D] gate before SiLU.
        state: [B, N, D].

    Returns:
        y [B, D] and the next state [B, N, D].
    """
    x, dt, A, B, C, D, dt_bias, z, state = f64(x, dt, A, B, C, D, dt_bias, z, state)
    d = softplus(dt + dt_bias)
    state = np.exp(d[:, None] * A) * state + B[:, :, None] * (d * x)[:, None]
    y = np.einsum("bn,bnd->bd", C, state) + D * x
    return y * silu(z), state


def selective_scan(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    dt_bias: Array,
    z: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Whole sequence, as a parallel scan. x, dt, z [B, T, D]; B, C [B, T, N]; the rest as in the step.

    Two affine maps h -> a h + b compose to (a2 a1, a2 b1 + b2). Doubling the reach of every
    prefix log2(T) times gives all prefixes (Hillis & Steele 1986; for SSMs Smith et al. 2023,
    S5, section 2.2); no exponent is ever positive, so nothing can overflow.
    """
    x, dt, A, B, C, D, dt_bias, z, state = f64(x, dt, A, B, C, D, dt_bias, z, state)
    d = softplus(dt + dt_bias)
    a = np.exp(d[:, :, None] * A)  # [B, T, N, D]
    b = B[..., None] * (d * x)[:, :, None]
    reach = 1
    while reach < x.shape[1]:
        b = np.concatenate([b[:, :reach], a[:, reach:] * b[:, :-reach] + b[:, reach:]], axis=1)
        a = np.concatenate([a[:, :reach], a[:, reach:] * a[:, :-reach]], axis=1)
        reach *= 2
    h = a * state[:, None] + b
    y = np.einsum("btn,btnd->btd", C, h) + D * x
    return y * silu(z), np.concatenate([state[:, None], h], axis=1)[:, -1]


# --------------------------------------------------------------- StateSpaceDual
#
#     h = exp(dt A) h + dt B x^T                one decay a head; g = h // (H / G) names its group
#     y = C h + D x
#
# Source: Dao & Gu 2024 (Mamba-2), section 6 and listing 1. dt comes in positive: bias,
# softplus and dt_limit belong to the layer.


def state_space_dual_step(
    x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array, state: Array
) -> tuple[Array, Array]:
    """One item of the recurrence.

    Args:
        x: [B, H, P] the item.
        dt: [B, H] positive time step.
        A: [H] negative.
        B: [B, G, N] input projection.
        C: [B, G, N] output projection.
        D: [H, P] skip.
        state: [B, H, N, P].

    Returns:
        y [B, H, P] and the next state [B, H, N, P].

    Raises:
        ValueError: H is not a multiple of G.
    """
    x, dt, A, B, C, D, state = f64(x, dt, A, B, C, D, state)
    B, C = (share_heads(group, x.shape[1]) for group in (B, C))
    state = np.exp(dt * A)[..., None, None] * state + np.einsum("bh,bhn,bhp->bhnp", dt, B, x)
    return np.einsum("bhn,bhnp->bhp", C, state) + D * x, state


def state_space_dual(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    state: Array,
    chunk: int = 64,
) -> tuple[Array, Array]:
    """Whole sequence in the dual (attention-like) form, ``chunk`` items at a time.

    x [B, T, H, P]; dt [B, T, H]; B, C [B, T, G, N]; the rest as in the step. Any ``chunk`` >= 1
    gives the same result; it bounds memory, which is quadratic in it.
    """
    x, dt, A, B, C, D, state = f64(x, dt, A, B, C, D, state)
    B, C = (share_heads(group, x.shape[2]) for group in (B, C))
    outputs = [np.empty_like(x[:, :0])]
    for start in range(0, x.shape[1], chunk):
        part = slice(start, start + chunk)
        y, state = _dual_chunk(x[:, part], dt[:, part], A, B[:, part], C[:, part], state)
        outputs.append(y + D * x[:, part])
    return np.concatenate(outputs, axis=1), state.copy()


def _dual_chunk(x: Array, dt: Array, A: Array, B: Array, C: Array, state: Array) -> tuple[Array, Array]:
    """y_t = sum_{s <= t} (C_t . B_s) exp(sum_{s < r <= t} dt_r A) dt_s x_s, plus what the state adds."""
    log_decay = np.moveaxis(dt * A, 1, 2)  # [B, H, T]
    between = np.exp(_segment_sums(log_decay))  # [B, H, T, S]: decay from item s to item t
    since_start = np.exp(np.cumsum(log_decay, axis=-1))  # [B, H, T]
    weighted = dt[..., None] * x  # [B, S, H, P]
    scores = np.einsum("bthn,bshn->bhts", C, B) * between
    y = np.einsum("bhts,bshp->bthp", scores, weighted)
    y += np.einsum("bthn,bht,bhnp->bthp", C, since_start, state)
    added = np.einsum("bhs,bshn,bshp->bhnp", between[:, :, -1], B, weighted)
    return y, since_start[..., -1, None, None] * state + added


def _segment_sums(a: Array) -> Array:
    """out[..., t, s] = a[s+1] + ... + a[t] for s <= t, -inf above the diagonal.

    Summed directly, not as a difference of two running sums: a difference would lose the
    small steps that follow a large one.
    """
    T = a.shape[-1]
    rows = np.where(np.tri(T, k=-1, dtype=bool), a[..., :, None], 0.0)
    return np.where(np.tri(T, dtype=bool), np.cumsum(rows, axis=-2), -np.inf)


def share_heads(grouped: Array, heads: int) -> Array:
    """[..., G, n] -> [..., heads, n]: head h reads group h // (heads / G).

    Raises:
        ValueError: heads is not a multiple of G.
    """
    groups = grouped.shape[-2]
    if heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups; make heads a multiple of groups")
    return np.repeat(grouped, heads // groups, axis=-2)
