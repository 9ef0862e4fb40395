"""Random inputs that suit a model, and random ways to split them; all from one generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.manifest import Manifest

Array = npt.NDArray[Any]

_SECONDS = 2
_FEWEST = 256
_MOST_FOR_WINDOW = 4096


def default_items(manifest: Manifest) -> int:
    """How many items make a telling test.

    Two seconds, or 256 items; several blocks; past the look-ahead and twice around any window.
    Not a multiple of the hop, where there is one, so that the end is ragged.
    """
    hop, rate = manifest.input.hop, manifest.input.rate
    # a ring of past items has three axes, heads, slots and columns, like some states that are none
    window = max((state.shape[1] for state in manifest.states if len(state.shape) == 3), default=0)
    wanted = max(
        _FEWEST,
        round(_SECONDS * rate) if rate is not None else 0,
        8 * manifest.block,
        4 * manifest.lookahead,
        min(2 * window, _MOST_FOR_WINDOW) * hop,
    )
    return wanted + hop // 2


def draw_input(manifest: Manifest, items: int, rng: np.random.Generator) -> Array:
    """``items`` input items: noise with bursts and tones, normal features, or uniform tokens."""
    spec = manifest.input
    shape = (items, *spec.shape)
    if spec.dtype == "int64":
        return rng.integers(0, spec.vocabulary or 2, size=shape, dtype=np.int64)
    if spec.kind == "samples":
        return _signal(shape, rng)
    return rng.standard_normal(shape, dtype=np.float32)


def draw_split(items: int, block: int, rng: np.random.Generator) -> list[int]:
    """Lengths, zeros among them, that add up to ``items``; of one of several characters."""
    longest = max(1, int(rng.choice([3, block, 2 * block, max(1, items // 4), items])))
    near_block = rng.random() < 0.3
    lengths: list[int] = []
    left = items
    while left:
        length = block + int(rng.integers(-1, 2)) if near_block else int(rng.integers(0, longest + 1))
        lengths.append(min(max(length, 0), left))
        left -= lengths[-1]
        # a stretch of single items is short: the rest of a long input goes in larger pieces
        if len(lengths) == 2000:
            longest, near_block = max(longest, items // 8), False
    return lengths


def pieces(x: Array, lengths: list[int]) -> list[Array]:
    """``x`` cut into these lengths."""
    return np.split(x, np.cumsum(lengths)[:-1]) if lengths else []


def _signal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Quiet noise, loud bursts and tones, within [-1, 1]."""
    noise = 0.01 * rng.standard_normal(shape)
    time = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    for _ in range(4):
        start, length = rng.integers(0, max(1, shape[0])), rng.integers(1, max(2, shape[0] // 4))
        part = slice(start, start + length)
        noise[part] += rng.uniform(0.05, 0.5) * rng.standard_normal(noise[part].shape)
        noise[part] += rng.uniform(0.05, 0.5) * np.sin(rng.uniform(0.01, 1.0) * time[part])
    return np.clip(noise, -1.0, 1.0).astype(np.float32)
