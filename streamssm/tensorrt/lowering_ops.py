"""Our operators in native operators of TensorRT, for calls of one known length.

TensorRT-RTX takes no plugins of ours, and a Scan or a Loop would keep a compiler from fusing anything, if
it takes it at all. For a known number of items T neither is needed: one item is the recurrence itself;
several are a prefix (selective scan) or products of matrices (state space dual). The number of sequences
stays open. Recurrences and sums are float32, as the states are.

Shapes: B batch, T items, D channels, N state size, K conv width, H heads, P head dim, G groups, R heads of
a group, W window, L samples of a frame. The formulas are in ``streamssm.kernels.reference``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from streamssm.errors import ExportError
from streamssm.tensorrt.lowering_graph import Array, Builder, Facts, attributes_of

#: items of a call beyond which a recurrence is cut into chunks: what a chunk holds grows with its square
CHUNK = 64
#: and beyond which it is not written out at all
MOST_ITEMS = 512


def softplus(b: Builder, x: str, out: str | None = None) -> str:
    """log(1 + exp(x)), exact to the last digits on both sides of zero.

    With e = exp(-|x|) it is max(x, 0) + log(1 + e), and log(1 + e) = 2 atanh(e / (2 + e)), a series in at
    most 1/9 that nine terms of sum up to float32. As it is written, log(1 + e) would lose the small steps.
    """
    e = b("Exp", b("Neg", b("Abs", x)))
    s = b("Div", e, b("Add", e, 2.0))
    square = b("Mul", s, s)
    terms = [1.0 / (2 * n + 1) for n in range(9)]
    series = b.constant(terms[-1])
    for term in reversed(terms[:-1]):
        series = b("Add", b("Mul", series, square), term)
    tail = b("Mul", b("Mul", s, 2.0), series)
    return b("Add", b("Max", x, 0.0), tail, out=out)


def silu(b: Builder, x: str, out: str | None = None) -> str:
    """x sigmoid(x)."""
    return b("Mul", x, b("Sigmoid", x), out=out)


def part(b: Builder, x: str, axis: int, start: int, stop: int, out: str | None = None) -> str:
    """Items ``start`` to ``stop`` along an axis."""
    return b("Slice", x, [start], [stop], [axis], out=out)


def causal_conv1d(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """A sum over taps, each a shifted view of [state; x]."""
    x, weight, bias, state = node.input
    y, following = node.output
    (K,), taps = facts.sizes(weight, 0), facts.value(weight)
    T = facts.sizes(x, 1)[0] if K > 1 else 0  # an item alone needs no length
    full = b("Concat", state, x, axis=1) if K > 1 else x
    total = bias
    for k in range(K):
        row = part(b, weight, 0, k, k + 1) if taps is None else b.constant(taps[k])
        shifted = part(b, full, 1, k, k + T) if K > 1 else x
        total = b("Add", total, b("Mul", shifted, row))
    (silu if attributes_of(node).get("silu") else _same)(b, total, y)
    _same(b, state, following) if K == 1 else part(b, full, 1, T, T + K - 1, following)


def _same(b: Builder, x: str, out: str | None = None) -> str:
    return b("Identity", x, out=out)


def selective_scan(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """Items one at a time are the recurrence; several are prefixes, found by doubling their reach."""
    x, dt, A, B, C, D, dt_bias, z, state = node.input
    y, following = node.output
    (T,) = facts.sizes(x, 1)
    delta = softplus(b, b("Add", dt, dt_bias))
    inflow = b("Mul", delta, x)
    if T == 1:
        (N,) = facts.sizes(A, 0)
        outflow = _scan_item(b, (delta, inflow, A, B, C), N, state, following)
    else:
        outflow = _in_chunks(
            b,
            T,
            (delta, inflow, B, C),
            lambda parts, h, out: _scan_chunk(b, parts, A, h, out),
            state,
            following,
        )
    ungated = b("Add", outflow, b("Mul", D, x))
    b("Mul", ungated, silu(b, z), out=y)


def _scan_item(b: Builder, operands: tuple[str, ...], N: int, h: str, out: str) -> str:
    """delta, inflow [B, 1, D]; A [N, D]; B, C [B, 1, N]; h [B, N, D] -> [B, 1, D]."""
    delta, inflow, A, B, C = operands
    decay = b("Exp", b("Mul", delta, A))
    b_column, c_column = (b("Reshape", value, [0, N, 1]) for value in (B, C))
    b("Add", b("Mul", decay, h), b("Mul", b_column, inflow), out=out)
    return b("ReduceSum", b("Mul", c_column, out), [1], keepdims=1)


def _scan_chunk(b: Builder, parts: tuple[tuple[str, ...], int], A: str, h: str, out: str) -> str:
    """T items at once: decays a and inflows u [B, T, N, D] become those from the start up to each item by
    log2(T) compositions, (a, u) after (a', u') being (a a', a u' + u). No exponent is ever positive."""
    (delta, inflow, B, C), T = parts
    a = b("Exp", b("Mul", b("Unsqueeze", delta, [2]), A))
    u = b("Mul", b("Unsqueeze", B, [3]), b("Unsqueeze", inflow, [2]))
    # the state is what flows in before the first item
    first = b("Add", b("Mul", part(b, a, 1, 0, 1), b("Unsqueeze", h, [1])), part(b, u, 1, 0, 1))
    u = b("Concat", first, part(b, u, 1, 1, T), axis=1) if T > 1 else first
    reach = 1
    while reach < T:
        later, earlier = part(b, a, 1, reach, T), part(b, u, 1, 0, T - reach)
        joined = b("Add", b("Mul", later, earlier), part(b, u, 1, reach, T))
        u = b("Concat", part(b, u, 1, 0, reach), joined, axis=1)
        if 2 * reach < T:
            a = b("Concat", part(b, a, 1, 0, reach), b("Mul", later, part(b, a, 1, 0, T - reach)), axis=1)
        reach *= 2
    b("Squeeze", part(b, u, 1, T - 1, T), [1], out=out)
    return b("ReduceSum", b("Mul", u, b("Unsqueeze", C, [3])), [2], keepdims=0)


def _in_chunks(
    b: Builder,
    T: int,
    operands: tuple[str, ...],
    run: Callable[[tuple[tuple[str, ...], int], str, str], str],
    state: str,
    following: str,
) -> str:
    """``run`` on chunks of the operands along axis 1, one after the other; their results in a row.

    Raises:
        ExportError: there are too many.
    """
    if T > MOST_ITEMS:
        raise ExportError(
            f"a recurrence runs over {T} items of a call, {MOST_ITEMS} at most are written out; "
            "give a smaller --block, or --plugins on"
        )
    outputs = []
    for start in range(0, T, CHUNK):
        stop = min(T, start + CHUNK)
        parts = operands if T <= CHUNK else tuple(part(b, value, 1, start, stop) for value in operands)
        out = following if stop == T else b.name(following)
        outputs.append(run((parts, stop - start), state, out))
        state = out
    return outputs[0] if len(outputs) == 1 else b("Concat", *outputs, axis=1)


def state_space_dual(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """One item is the recurrence; several are products of matrices, 64 items at a time."""
    x, dt, A, B, C, D, state = node.input
    y, following = node.output
    (T, H, P), (G, N) = facts.sizes(x, 1, 2, 3), facts.sizes(B, 2, 3)
    sizes = (G, H // G, N, P)
    h = b("Reshape", state, [0, *sizes])
    log_decay = b("Mul", dt, A)
    inflow = b("Mul", x, b("Unsqueeze", dt, [3]))
    operands = (inflow, log_decay, B, C)
    grown = b.name(following)
    if T == 1:
        outflow = _dual_item(b, operands, sizes, h, grown)
    else:
        outflow = _in_chunks(
            b, T, operands, lambda parts, h, out: _dual_chunk(b, parts, sizes, h, out), h, grown
        )
    b("Reshape", grown, [0, H, N, P], out=following)
    b("Add", outflow, b("Mul", D, x), out=y)


def _dual_item(b: Builder, operands: tuple[str, ...], sizes: tuple[int, ...], h: str, out: str) -> str:
    """inflow [B, 1, H, P]; log_decay [B, 1, H]; B, C [B, 1, G, N]; h [B, G, R, N, P] -> [B, 1, H, P]."""
    inflow, log_decay, B, C = operands
    G, R, N, P = sizes
    decay = b("Reshape", b("Exp", log_decay), [0, G, R, 1, 1])
    row = b("Reshape", inflow, [0, G, R, 1, P])
    b_column, c_column = (b("Reshape", value, [0, G, 1, N, 1]) for value in (B, C))
    b("Add", b("Mul", decay, h), b("Mul", b_column, row), out=out)
    y = b("ReduceSum", b("Mul", c_column, out), [3], keepdims=0)
    return b("Reshape", y, [0, 1, G * R, P])


def _dual_chunk(
    b: Builder, parts: tuple[tuple[str, ...], int], sizes: tuple[int, ...], h: str, out: str
) -> str:
    """inflow [B, T, H, P]; log_decay [B, T, H]; B, C [B, T, G, N]; h [B, G, R, N, P] -> [B, T, H, P].

    Decays between two items are summed for each pair by itself, as a product with ones: a difference of
    running sums would lose a small step that follows a huge one.
    """
    (inflow, log_decay, B, C), T = parts
    G, R, _, P = sizes
    lower = np.tri(T, dtype=np.float32)
    a = b("Unsqueeze", b("Transpose", log_decay, perm=[0, 2, 1]), [3])  # [B, H, T, 1]
    between = b("MatMul", lower, b("Mul", a, np.tri(T, k=-1, dtype=np.float32)))
    decay = b("Reshape", b("Mul", b("Exp", between), lower), [0, G, R, T, T])
    since_start = b("Reshape", b("Exp", b("MatMul", lower, a)), [0, G, R, T, 1])
    u = b("Reshape", b("Transpose", inflow, perm=[0, 2, 1, 3]), [0, G, R, T, P])
    b_columns = b("Unsqueeze", b("Transpose", B, perm=[0, 2, 3, 1]), [2])  # [B, G, 1, N, T]
    c_rows = b("Unsqueeze", b("Transpose", C, perm=[0, 2, 1, 3]), [2])  # [B, G, 1, T, N]

    weights = b("Mul", b("MatMul", c_rows, b_columns), decay)
    within = b("MatMul", weights, u)
    across = b("Mul", b("MatMul", c_rows, h), since_start)
    y = b("Reshape", b("Add", within, across), [0, G * R, T, P])

    until_end = b("Transpose", part(b, decay, 3, T - 1, T), perm=[0, 1, 2, 4, 3])  # [B, G, R, T, 1]
    gained = b("MatMul", b_columns, b("Mul", u, until_end))
    b("Add", b("Mul", h, part(b, since_start, 3, T - 1, T)), gained, out=out)
    return b("Transpose", y, perm=[0, 2, 1, 3])


def log_mel(b: Builder, node: onnx.NodeProto, facts: Facts) -> None:
    """Frames by an index, and a product with the windowed Fourier matrix, made in float64."""
    x, window_name, filters, past = node.input
    y, following = node.output
    given = attributes_of(node)
    hop, points, eps = given["hop"], given["n_fft"], given["eps"]
    window = facts.constant(window_name, "the window")
    (P,), L = facts.sizes(past, 1), len(window)
    if P:
        (T,) = facts.sizes(x, 1)
        full = b("Concat", past, x, axis=1)
        frames = _frames(b, full, np.arange(0, T, hop) + (P + hop - L), L)
        part(b, full, 1, T, T + P, following)
    else:  # no frame reaches beyond its own hop, whatever the number of them
        frames = part(b, b("Reshape", x, [0, -1, hop]), 2, hop - L, hop)
        _same(b, past, following)
    spectrum = b("MatMul", frames, _fourier(window, points))
    squares = b("Mul", spectrum, spectrum)
    bins = points // 2 + 1
    power = b("Add", part(b, squares, 2, 0, bins), part(b, squares, 2, bins, 2 * bins))
    b("Log", b("Add", b("MatMul", power, filters), float(eps)), out=y)


def _frames(b: Builder, full: str, starts: Array, L: int) -> str:
    """[B, P + T] -> [B, frames, L]."""
    if len(starts) == 1:
        return b("Unsqueeze", part(b, full, 1, int(starts[0]), int(starts[0]) + L), [1])
    return b("Gather", full, starts[:, None] + np.arange(L), axis=1)


def _fourier(window: Array, points: int) -> Array:
    """[L, 2 bins]: cosines, then sines, each sample times its weight."""
    turns = np.outer(np.arange(len(window)), np.arange(points // 2 + 1)) % points / points
    waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
    weighted: Array = (window.astype(np.float64)[:, None] * waves).astype(np.float32)
    return weighted
