"""Weights in the order in which the native kernels read them: panels of 16 columns.

See kernels/cpu/gemm.h and gemm_quantized.h for the layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PANEL = 16
_LINE = 64  # bytes
_PART = 1 << 21  # floats


def aligned_floats(count: int) -> Array:
    """float32 zeros that start at a multiple of 64 bytes."""
    raw = np.zeros(count * 4 + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + count * 4].view(np.float32)


def panels(columns: int) -> int:
    """How many panels so many columns take."""
    return -(-columns // PANEL)


def matrix_floats(K: int, N: int) -> int:
    """Floats of a packed matrix."""
    return panels(N) * PANEL * K


def matrix_parts(matrix: Array) -> Iterator[Array]:
    """[K, N] -> [panels, K, 16] in consecutive parts, so that a large matrix is never whole in memory
    a second time."""
    step = max(1, _PART // max(1, matrix.shape[0] * PANEL)) * PANEL
    for first in range(0, matrix.shape[1], step):
        yield pack_matrix(matrix[:, first : first + step])


def pack_matrix(matrix: Array) -> Array:
    """[K, N] -> [panels, K, 16], zeros in the columns past N."""
    K, N = matrix.shape
    count = panels(N)
    if count * PANEL == N:
        return np.ascontiguousarray(matrix.reshape(K, count, PANEL).transpose(1, 0, 2))
    packed = np.zeros((count, K, PANEL), np.float32)
    whole = N // PANEL
    packed[:whole] = matrix[:, : whole * PANEL].reshape(K, whole, PANEL).transpose(1, 0, 2)
    packed[whole, :, : N - whole * PANEL] = matrix[:, whole * PANEL :]
    return packed


def quantized_floats(N: int, blocks: int, block: int, bits: int) -> int:
    """Floats that the bytes of a packed quantised matrix take."""
    return panels(N) * PANEL * blocks * block * bits // 32


def pack_quantized(codes: Array, bits: int) -> Array:
    """Codes of MatMulNBits [N, blocks, bytes of a block] -> float32 words of packed panels.

    8 bits: [panels, blocks, block / 4, 16, 4] bytes. 4 bits: [panels, blocks, block / 8, 16, 4],
    the low half of a byte for the first 4 inputs of 8, the high half for the other 4.
    """
    N, blocks, _ = codes.shape
    count = panels(N)
    padded = np.full((count * PANEL, *codes.shape[1:]), 128 if bits == 8 else 0x88, np.uint8)
    padded[:N] = codes
    if bits == 8:
        groups = padded.reshape(count, PANEL, blocks, -1, 4)
    else:
        values = np.stack([padded & 15, padded >> 4], axis=-1).reshape(count, PANEL, blocks, -1, 2, 4)
        groups = values[..., 0, :] | values[..., 1, :] << 4
    return np.ascontiguousarray(groups.transpose(0, 2, 3, 1, 4)).reshape(-1).view(np.float32)


def pack_scales(scales: Array, N: int) -> Array:
    """[N, blocks] -> [panels, blocks, 16]."""
    rows = scales.reshape(N, -1)
    padded = np.zeros((panels(N) * PANEL, rows.shape[1]), np.float32)
    padded[:N] = rows
    return np.ascontiguousarray(padded.reshape(-1, PANEL, rows.shape[1]).transpose(0, 2, 1))
