"""SlidingWindowAttention, for one item and for a whole sequence.

    y_i = sum_j softmax_j(scale * <R_i q_i, R_j k_j>) v_j     over j with i - W < j <= i and j >= 0

R_p turns each pair (d, d + R/2) by the angle p * inv_freq[d]. Since R_i and R_j are rotations,
<R_i q, R_j k> = <R_{i-j} q, k>: the step uses this relative form, which stays exact however
old the stream is; the whole-sequence form is the definition, on absolute positions.

Source: Vaswani et al. 2017 (attention), Su et al. 2021 equation 34 (RoPE), with the
half-split pairing of GPT-NeoX and Llama; window as in Beltagy et al. 2020, causal.

Letters and conventions: see :mod:`streamssm.kernels.reference`. Float64 throughout.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .reference_ops import Array, f64, share_heads

Positions = NDArray[np.int64]


def rotary_frequencies(rotary_dim: int, base: float = 10000.0) -> Array:
    """base ** (-2 d / R) for d in 0 .. R/2 - 1 (Su et al. 2021, section 3.2.2): [R/2], radians per item."""
    return float(base) ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def rotary(x: Array, position: Array, inv_freq: Array) -> Array:
    """Turn the first R = 2 len(inv_freq) of the last dimension; the others pass.

    Args:
        x: [..., dh].
        position: broadcastable to x.shape[:-1].
        inv_freq: [R/2] radians per item.

    Returns:
        [..., dh]. The angles are rounded to position * 2**-53 radians.
    """
    x, position, inv_freq = f64(x, position, inv_freq)
    half = len(inv_freq)
    angle = position[..., None] * inv_freq
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    shape = np.broadcast_shapes(turned[0].shape[:-1], rest.shape[:-1])
    return np.concatenate([*turned, np.broadcast_to(rest, (*shape, rest.shape[-1]))], axis=-1)


def sliding_window_attention_step(
    q: Array,
    k: Array,
    v: Array,
    inv_freq: Array,
    key: Array,
    value: Array,
    position: Array,
    scale: float,
) -> tuple[Array, Array, Array, Positions]:
    """One item on the ring, rotary angles relative.

    Args:
        q: [B, Hq, dh].
        k: [B, Hkv, dh] not rotated.
        v: [B, Hkv, dh].
        inv_freq: [R/2] radians per item, R <= dh; empty for no rotary.
        key: [B, Hkv, W, dh] ring; the item with absolute index i lives in slot i % W.
        value: [B, Hkv, W, dh] ring.
        position: [B] items seen so far, each stream its own.
        scale: factor on the scores, usually dh ** -0.5.

    Returns:
        y [B, Hq, dh], then the next key, value and position.

    Raises:
        ValueError: Hq is not a multiple of Hkv.
    """
    q, k, v, inv_freq, key, value = f64(q, k, v, inv_freq, key, value)
    position = np.asarray(position, dtype=np.int64)
    W, stream, Hq = key.shape[2], np.arange(len(q)), q.shape[1]
    key, value = key.copy(), value.copy()
    key[stream, :, position % W] = k
    value[stream, :, position % W] = v

    age = (position[:, None] - np.arange(W)) % W  # [B, W]: items since each slot was written
    turned = rotary(q[:, None], age[..., None], inv_freq)  # [B, W, Hq, dh]
    keys, values = (share_heads(np.swapaxes(ring, 1, 2), Hq) for ring in (key, value))
    scores = scale * np.einsum("bwhd,bwhd->bhw", turned, keys)
    written = age <= position[:, None]
    weights = _softmax(np.where(written[:, None], scores, -np.inf))
    return np.einsum("bhw,bwhd->bhd", weights, values), key, value, position + 1


def sliding_window_attention(
    q: Array,
    k: Array,
    v: Array,
    inv_freq: Array,
    key: Array,
    value: Array,
    position: Array,
    scale: float,
) -> tuple[Array, Array, Array, Positions]:
    """Whole sequence: the ring laid out in time before the new items, rotary angles absolute.

    q [B, T, Hq, dh]; k, v [B, T, Hkv, dh]; the rest as in the step. Being the definition,
    it is as exact as float64 angles: 1e-7 at position 1e9. For older streams use the step.
    """
    q, k, v, inv_freq, key, value = f64(q, k, v, inv_freq, key, value)
    position = np.asarray(position, dtype=np.int64)
    y, key, value = np.empty_like(q), key.copy(), value.copy()
    for b, seen in enumerate(position):
        y[b] = _attend(q[b], k[b], v[b], inv_freq, key[b], value[b], int(seen), scale)
        _write_ring(key[b], k[b], int(seen))
        _write_ring(value[b], v[b], int(seen))
    return y, key, value, position + q.shape[1]


def _attend(
    q: Array, k: Array, v: Array, inv_freq: Array, key: Array, value: Array, seen: int, scale: float
) -> Array:
    """One stream: q [T, Hq, dh] attends to the last W items of the past and to the new ones."""
    T, Hq, W = q.shape[0], q.shape[1], key.shape[1]
    past = np.arange(max(0, seen - W), seen)
    i, j = np.arange(seen, seen + T), np.arange(max(0, seen - W), seen + T)
    keys, values = (
        share_heads(np.concatenate([np.swapaxes(ring, 0, 1)[past % W], new]), Hq)  # [len(j), Hq, dh]
        for ring, new in ((key, k), (value, v))
    )
    queries, keys = rotary(q, i[:, None], inv_freq), rotary(keys, j[:, None], inv_freq)
    visible = (j > i[:, None] - W) & (j <= i[:, None])
    scores = np.where(visible, scale * np.einsum("ihd,jhd->hij", queries, keys), -np.inf)
    y: Array = np.einsum("hij,jhd->ihd", _softmax(scores), values)
    return y


def _write_ring(ring: Array, new: Array, seen: int) -> None:
    """Put the last W of new [T, Hkv, dh] into ring [Hkv, W, dh], in place."""
    T, W = new.shape[0], ring.shape[1]
    kept = np.arange(max(0, T - W), T)
    ring[:, (seen + kept) % W] = np.swapaxes(new[kept], 0, 1)


def _softmax(scores: Array) -> Array:
    """Over the last axis. Every row has a finite score: an item always sees itself."""
    weights: Array = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
