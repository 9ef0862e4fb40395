"""SlidingWindowAttention in native operators, for calls of one known length.

Softmax does not mind the order of keys, so the ring is read as it lies: what a slot's place in time is
decides its angle and whether it is seen, and nothing is moved. Places count from the oldest slot: 0 to W - 1
the ring, then the new items; angles are differences of places and stay small however old the stream is.

Shapes: B batch, T items, Hq query heads, Hkv key/value heads, dh head dim, W window, R/2 pairs that turn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from streamssm.tensorrt.lowering_graph import Array, Builder, Facts, attributes_of
from streamssm.tensorrt.lowering_ops import part

_NEVER = -3.4e38


class _Sizes(NamedTuple):
    T: int
    W: int
    Hq: int
    Hkv: int
    dh: int


class _Keys(NamedTuple):
    """Keys, rotated, and values [B, Hkv, n, dh]; which of them each query sees, [B or 1, T, n]."""

    keys: str
    values: str
    visible: str


def sliding_window_attention(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """One item is written first and reads the ring alone; several read the ring and each other."""
    q, k, v, frequencies, key, value, position = node.input
    y, next_key, next_value, next_position = node.output
    sizes = _Sizes(*facts.sizes(q, 1), *facts.sizes(key, 2), *facts.sizes(q, 2), *facts.sizes(key, 1, 3))
    angles = np.arange(sizes.W + sizes.T)[:, None] * facts.constant(frequencies, "the frequencies")
    k_heads, v_heads = (b("Transpose", new, perm=[0, 2, 1, 3]) for new in (k, v))
    if sizes.T == 1:
        _write_item(b, sizes, position, ((key, k_heads, next_key), (value, v_heads, next_value)))
        seen = [_ring(b, sizes, angles, b("Add", position, [1]), next_key, next_value, True)]
        places = angles[sizes.W - 1 : sizes.W]
    else:
        _write_items(b, sizes, position, ((key, k_heads, next_key), (value, v_heads, next_value)))
        seen = [
            _ring(b, sizes, angles, position, key, value, False),
            _new(b, sizes, angles, k_heads, v_heads),
        ]
        places = angles[sizes.W :]
    q_rotated = _rotate(b, b("Transpose", q, perm=[0, 2, 1, 3]), places, sizes.dh)
    mixed = _attend(b, sizes, q_rotated, seen, float(attributes_of(node)["scale"]))
    b("Transpose", b("Reshape", mixed, [0, sizes.Hq, sizes.T, sizes.dh]), perm=[0, 2, 1, 3], out=y)
    b("Add", position, [sizes.T], out=next_position)


def _attend(b: Builder, sizes: _Sizes, q: str, seen: list[_Keys], scale: float) -> str:
    """q [B, Hq, T, dh], rotated -> [B, Hkv, Hq / Hkv, T, dh]. Ring and new items stay apart up to the
    softmax: to join their keys would copy the ring."""
    T, _, Hq, Hkv, dh = sizes
    grouped = b("Reshape", q, [0, Hkv, Hq // Hkv, T, dh])
    scores = []
    for part_of in seen:
        columns = b("Unsqueeze", b("Transpose", part_of.keys, perm=[0, 1, 3, 2]), [2])
        scaled = b("Mul", b("MatMul", grouped, columns), scale)
        scores.append(b("Where", b("Unsqueeze", part_of.visible, [1, 2]), scaled, _NEVER))
    if len(seen) == 1:
        weights = [b("Softmax", scores[0], axis=-1)]
    else:
        joined = b("Softmax", b("Concat", *scores, axis=4), axis=-1)
        weights = [part(b, joined, 4, 0, sizes.W), part(b, joined, 4, sizes.W, sizes.W + T)]
    mixed = [
        b("MatMul", weight, b("Unsqueeze", part_of.values, [2]))
        for weight, part_of in zip(weights, seen, strict=True)
    ]
    return mixed[0] if len(mixed) == 1 else b("Add", *mixed)


def _ring(
    b: Builder, sizes: _Sizes, angles: Array, position: str, key: str, value: str, future: bool
) -> _Keys:
    """What a ring holds that has been written ``position`` times [B].

    The slot to be written next is the oldest. ``future`` is whether the queries are in the ring already:
    then each sees all of it, and else the first query no longer sees the oldest slot, and so on.
    """
    T, W = sizes.T, sizes.W
    start = b("Unsqueeze", position, [1])
    oldest = b("Mod", start, [W])
    slot = np.arange(W, dtype=np.int64)[None]
    behind = b("Sub", slot, oldest)
    place = b("Where", b("Less", behind, [0]), b("Add", behind, [W]), behind)  # [B, W]
    exists = b("GreaterOrEqual", place, b("Sub", [W], start))
    visible = b("Unsqueeze", exists, [1])
    if not future:
        query = np.arange(T, dtype=np.int64)[:, None]
        visible = b("And", visible, b("Greater", b("Unsqueeze", place, [1]), query))
    return _Keys(_rotate(b, key, angles[:W], sizes.dh, place), value, visible)


def _new(b: Builder, sizes: _Sizes, angles: Array, keys: str, values: str) -> _Keys:
    """The new items: each sees itself and those before it in the window."""
    item = np.arange(sizes.T)
    visible = (item[None] <= item[:, None]) & (item[None] > item[:, None] - sizes.W)
    return _Keys(_rotate(b, keys, angles[sizes.W :], sizes.dh), values, b.constant(visible[None]))


def _rotate(b: Builder, x: str, angles: Array, dh: int, place: str | None = None) -> str:
    """Turn the pairs (d, d + R/2) of x [B, heads, n, dh] by angles [n, R/2], or by those of each row's
    ``place`` [B, n]; the other dimensions pass."""
    half = angles.shape[1]
    if not half:
        return x
    cosine, sine = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
    c, s = b.constant(cosine), b.constant(sine)
    if place is not None:
        c, s = (b("Unsqueeze", b("Gather", table, place, axis=0), [1]) for table in (c, s))
    first, second = part(b, x, 3, 0, half), part(b, x, 3, half, 2 * half)
    halves = [
        b("Sub", b("Mul", first, c), b("Mul", second, s)),
        b("Add", b("Mul", second, c), b("Mul", first, s)),
    ]
    rest = [part(b, x, 3, 2 * half, dh)] if 2 * half < dh else []
    return b("Concat", *halves, *rest, axis=3)


_Rings = tuple[tuple[str, str, str], tuple[str, str, str]]


def _write_item(b: Builder, sizes: _Sizes, position: str, rings: _Rings) -> None:
    """One new item [B, Hkv, 1, dh] over the oldest slot of each ring [B, Hkv, W, dh]."""
    oldest = b("Mod", position, [sizes.W])
    slot = np.arange(sizes.W, dtype=np.int64)[None]
    here = b("Unsqueeze", b("Equal", slot, b("Unsqueeze", oldest, [1])), [1, 3])
    for ring, new, out in rings:
        b("Where", here, new, ring, out=out)


def _write_items(b: Builder, sizes: _Sizes, position: str, rings: _Rings) -> None:
    """The last of T new items [B, Hkv, T, dh] that belong in each slot, where there is one."""
    T, W, _, Hkv, dh = sizes
    last = b("Mod", b("Add", b("Unsqueeze", position, [1]), [T - 1]), [W])
    ahead = b("Sub", last, np.arange(W, dtype=np.int64)[None])
    behind = b("Where", b("Less", ahead, [0]), b("Add", ahead, [W]), ahead)
    item = b("Sub", [T - 1], behind)  # [B, W]
    written = b("Unsqueeze", b("GreaterOrEqual", item, [0]), [1, 3])
    column = b("Unsqueeze", b("Max", item, [0]), [1, 3])
    index = b("Add", column, np.zeros((1, Hkv, W, dh), np.int64))
    for ring, new, out in rings:
        b("Where", written, b("GatherElements", new, index, axis=2), ring, out=out)
