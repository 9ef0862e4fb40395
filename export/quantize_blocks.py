"""Blockwise rounding of one matrix, in the layout of ``com.microsoft::MatMulNBits``.

K rows (inputs), N columns (outputs), b bits, L = 2^(b-1). A column is cut into blocks of ``block``
rows, the last one filled up with zeros; each block has one scale s, of either sign, and
w[k, n] ~ s (u - L) with u an unsigned number of b bits. There are no zero points, so zero stays
zero. A negative scale costs nothing and lets the largest weight of a block, of whatever sign, use
the end of [-L, L - 1] that reaches further.

The scale of a block is the one of the smallest squared error among a grid of both signs, refined by
least squares for the numbers it led to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

BITS = {"int8": 8, "int4": 4}
#: what ONNX Runtime's kernels take
BLOCK_SIZES = (16, 32, 64, 128, 256)

# Of the scale at which the largest weight of a block becomes -L. L / (L - 1) makes it L - 1: rounding
# to nearest in the symmetric range, which the others can only better. At 4 bits clipping pays: down to
# 0.7 for bell-shaped weights in long blocks. At 8 bits it never does.
_FACTORS = {8: (1.0, 128 / 127), 4: (*(float(f) for f in np.linspace(0.65, 1.1, 19)), 8 / 7)}
_REFINEMENTS = 2
_AT_A_TIME = 1 << 18  # weights: what a processor's cache holds a few copies of


@dataclass(frozen=True)
class QuantisedMatrix:
    """``packed`` uint8 [N, blocks, block * bits / 8], ``scale`` float32 [N, blocks]; K rows count."""

    packed: npt.NDArray[np.uint8]
    scale: Array
    K: int
    bits: int
    block: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows K and columns N."""
        return self.K, len(self.packed)

    def restored(self) -> Array:
        """The matrix it stands for, float32 [K, N]."""
        level = 1 << (self.bits - 1)
        numbers = unpack(self.packed, self.bits).astype(np.float32) - level
        columns = (numbers * self.scale[..., None]).reshape(len(numbers), -1)
        return np.ascontiguousarray(columns[:, : self.K].T)


def fitting_block(K: int, block: int) -> int:
    """The block for a matrix of K rows: the one asked for, or a smaller one that holds all of them."""
    return min([block, *(size for size in BLOCK_SIZES if size >= K)])


def quantise(weight: Array, bits: int, block: int) -> QuantisedMatrix:
    """Round a float32 matrix [K, N]."""
    K, N = weight.shape
    blocks = -(-K // block)
    numbers = np.empty((N, blocks, block), np.uint8)
    scale = np.empty((N, blocks), np.float32)
    rows = max(1, _AT_A_TIME // (blocks * block))
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        w = np.zeros((len(scale[part]), blocks * block), np.float32)
        w[:, :K] = weight[:, part].T
        rounded, scale[part] = _round(w.reshape(-1, blocks, block), bits)
        numbers[part] = (rounded + (1 << (bits - 1))).astype(np.uint8)
    return QuantisedMatrix(pack(numbers, bits), scale, K, bits, block)


def _round(w: Array, bits: int) -> tuple[Array, Array]:
    """The numbers in [-L, L - 1] and the scale of each block of w [rows, blocks, block]."""
    level = 1 << (bits - 1)
    place = np.abs(w).argmax(axis=-1, keepdims=True)
    full = np.take_along_axis(w, place, axis=-1)[..., 0] / -level  # the largest weight becomes -L
    best = np.full(full.shape, np.inf, np.float32)
    scale = np.ones_like(full)
    for factor in _FACTORS[bits]:
        for sign in (1, -1):
            _keep_better(w, full * np.float32(sign * factor), level, best, scale)
    for _ in range(_REFINEMENTS):
        q = _numbers(w, scale, level)
        square = np.square(q).sum(-1)
        fitted = np.divide((w * q).sum(-1), square, out=np.zeros_like(square), where=square > 0)
        _keep_better(w, fitted, level, best, scale)
    return _numbers(w, scale, level), scale


def _keep_better(w: Array, tried: Array, level: int, best: Array, scale: Array) -> None:
    """Take the scales tried where their squared error is below the best so far, in place."""
    usable = np.abs(tried) > np.finfo(np.float32).tiny  # not so for a block of zeros: it keeps scale 1
    tried = np.where(usable, tried, np.float32(1.0))
    error = np.square(w - _numbers(w, tried, level) * tried[..., None]).sum(-1)
    better = usable & (error < best)
    np.copyto(best, error, where=better)
    np.copyto(scale, tried, where=better)


def _numbers(w: Array, scale: Array, level: int) -> Array:
    return np.clip(np.rint(w * (1 / scale)[..., None]), -level, level - 1)


def pack(numbers: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Unsigned numbers to bytes along the last axis; of two 4-bit numbers the first is the low half."""
    return numbers if bits == 8 else numbers[..., 0::2] | (numbers[..., 1::2] << 4)


def unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """The inverse of :func:`pack`."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
