"""ctypes bindings of kernels/cpu/testing.cpp: one call of an operator for one sequence.

Matrices of items may lie inside wider ones, ``margin`` columns of NaN around them: a kernel that
reads outside its rows shows it in its results, and one that writes there is caught.
"""

from __future__ import annotations

import ctypes as c
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

NAMES = ("avx2", "avx512", "avx512vnni", "neon", "neon_dotprod")
FUNCTIONS = ("exp", "exp2", "sigmoid", "silu", "softplus", "log")
FloatPointer = c.POINTER(c.c_float)
HalfPointer = c.POINTER(c.c_uint16)


class Matrix(c.Structure):
    _fields_ = [("data", FloatPointer), ("stride", c.c_int64)]


class Range(c.Structure):
    _fields_ = [("first", c.c_int64), ("last", c.c_int64)]


def shape_type(names: str, **more: type) -> type[c.Structure]:
    fields = [(name, c.c_int64) for name in names.split()] + list(more.items())
    return type("Shape", (c.Structure,), {"_fields_": fields})


ConvShape = shape_type("T D K", silu=c.c_bool)
ScanShape = shape_type("T D N")
DualShape = shape_type("T H P G N")
AttentionShape = shape_type("T Hq Hkv dh W R", scale=c.c_float)


def pointer(array: np.ndarray) -> c.Array:
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return array.ctypes.data_as(FloatPointer)


@dataclass
class Call:
    """How to call: inside wider matrices, states in place, and the parts to do one after the other."""

    margin: int = 0
    in_place: bool = False
    cuts: tuple[int, ...] = ()  # of the channels or heads
    _wide: list[np.ndarray] = field(default_factory=list)

    def matrix(self, items: np.ndarray) -> Matrix:
        """items [T, ...] as a matrix of T rows."""
        flat = np.ascontiguousarray(items, np.float32).reshape(len(items), math.prod(items.shape[1:]))
        wide = np.full((len(flat) + 2, flat.shape[1] + 2 * self.margin), np.nan, np.float32)
        wide[1:-1, self.margin : self.margin + flat.shape[1]] = flat
        self._wide.append(wide)
        return Matrix(pointer(wide[1, self.margin :]), wide.shape[1])

    def taken(self, shape: tuple[int, ...]) -> np.ndarray:
        """What was written into the matrix made last; its surroundings must be untouched."""
        wide = self._wide.pop()
        inner = wide[1:-1, self.margin : wide.shape[1] - self.margin].reshape(shape).copy()
        wide[1:-1, self.margin : wide.shape[1] - self.margin] = np.nan
        assert np.isnan(wide).all(), "written outside the rows"
        self._wide.clear()
        return inner

    def next_of(self, state: np.ndarray) -> np.ndarray:
        return state if self.in_place else np.full_like(state, np.nan)

    def ranges(self, count: int) -> Iterable[Range]:
        edges = [0, *(cut for cut in self.cuts if 0 < cut < count), count]
        return [Range(a, b) for a, b in pairwise(edges)]


class Native:
    """The kernels of one instruction set."""

    def __init__(self, library: c.CDLL, name: str) -> None:
        self.library, self.name = library, name
        library.test_kernels.restype = c.c_void_p
        library.test_float_control.restype = c.c_uint64
        self.table = c.c_void_p(library.test_kernels(name.encode()))

    def causal_conv1d(self, how: Call, x, weight, bias, state, silu=False):
        (T, D), K = x.shape, len(weight)
        state = state.copy()
        following = how.next_of(state)
        data, out = how.matrix(x), how.matrix(np.full_like(x, np.nan))
        for part in how.ranges(D):
            self.library.test_causal_conv1d(
                self.table, ConvShape(T, D, K, silu), data, pointer(weight), pointer(bias),
                pointer(state), out, pointer(following), part,
            )  # fmt: skip
        return how.taken(x.shape), following

    def selective_scan(self, how: Call, x, dt, A, B, C, D, dt_bias, z, state):
        (T, channels), N = x.shape, len(A)
        state = state.copy()
        following = how.next_of(state)
        xs, dts, Bs, Cs, zs = (how.matrix(array) for array in (x, dt, B, C, z))
        out = how.matrix(np.full_like(x, np.nan))
        for part in how.ranges(channels):
            self.library.test_selective_scan(
                self.table, ScanShape(T, channels, N), xs, dts, pointer(A), Bs, Cs, pointer(D),
                pointer(dt_bias), zs, pointer(state), out, pointer(following), part,
            )  # fmt: skip
        return how.taken(x.shape), following

    def state_space_dual(self, how: Call, x, dt, A, B, C, D, state):
        (T, H, P), (G, N) = x.shape, B.shape[1:]
        state = state.copy()
        following = how.next_of(state)
        xs, dts, Bs, Cs = (how.matrix(array) for array in (x, dt, B, C))
        out = how.matrix(np.full_like(x, np.nan))
        for part in how.ranges(H):
            self.library.test_state_space_dual(
                self.table, DualShape(T, H, P, G, N), xs, dts, pointer(A), Bs, Cs, pointer(D),
                pointer(state), out, pointer(following), part,
            )  # fmt: skip
        return how.taken(x.shape), following

    def sliding_window_attention(self, how: Call, q, k, v, inv_freq, key, value, position, scale):
        (T, Hq, dh), (Hkv, W) = q.shape, key.shape[:2]
        angle = np.arange(W)[:, None] * inv_freq.astype(np.float64)
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        key, value = key.copy(), value.copy()
        next_key, next_value = how.next_of(key), how.next_of(value)
        qs, ks, vs = (how.matrix(array) for array in (q, k, v))
        out = how.matrix(np.full_like(q, np.nan))
        for part in how.ranges(Hkv):
            self.library.test_sliding_window_attention(
                self.table, AttentionShape(T, Hq, Hkv, dh, W, 2 * len(inv_freq), scale), qs, ks, vs,
                pointer(cosine), pointer(sine), pointer(key), pointer(value), c.c_int64(int(position)), out,
                pointer(next_key), pointer(next_value), part,
            )  # fmt: skip
        return how.taken(q.shape), next_key, next_value, position + T

    def map(self, function: str, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty_like(x)
        call = getattr(self.library, f"test_map_{self.name}")
        call(c.c_int32(FUNCTIONS.index(function)), pointer(x), pointer(out), c.c_int64(x.size))
        return out

    def widen(self, kind: str, bits: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(bits, np.uint16)
        out = np.empty(bits.shape, np.float32)
        call = getattr(self.library, f"test_from_{kind}")
        call(self.table, bits.ctypes.data_as(HalfPointer), pointer(out), c.c_int64(bits.size))
        return out

    def narrow(self, kind: str, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty(x.shape, np.uint16)
        call = getattr(self.library, f"test_to_{kind}")
        call(self.table, pointer(x), out.ctypes.data_as(HalfPointer), c.c_int64(x.size))
        return out


def available(library: c.CDLL) -> list[Native]:
    """Every instruction set that the library holds and this processor can run."""
    return [native for native in (Native(library, name) for name in NAMES) if native.table.value]
