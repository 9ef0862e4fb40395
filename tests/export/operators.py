"""Random arguments for each operator: shapes over the edges, data and states of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamssm.kernels import reference


@dataclass(frozen=True)
class Case:
    """An operator's inputs in order, how many of the last ones are state, and its attributes."""

    operator: str
    inputs: dict[str, np.ndarray]
    states: int
    attributes: dict[str, Any]

    @property
    def reference_name(self) -> str:
        words = "".join("_" + c.lower() if c.isupper() else c for c in self.operator)
        return words.removeprefix("_")


def causal_conv1d(T: int, B: int = 2, D: int = 6, K: int = 4, silu: bool = True) -> Case:
    draw = np.random.default_rng([T, B, K]).standard_normal
    inputs = {"x": draw((B, T, D)), "weight": draw((K, D)), "bias": draw(D), "state": draw((B, K - 1, D))}
    return Case("CausalConv1d", inputs, 1, {"silu": silu})


def selective_scan(T: int, B: int = 2, D: int = 6, N: int = 5) -> Case:
    generator = np.random.default_rng([T, B, N])
    draw = generator.standard_normal
    inputs = {
        "x": draw((B, T, D)),
        "dt": 3 * draw((B, T, D)),
        "A": -np.exp(draw((N, D))),
        "B": draw((B, T, N)),
        "C": draw((B, T, N)),
        "D": draw(D),
        "dt_bias": draw(D),
        "z": draw((B, T, D)),
        "state": draw((B, N, D)),
    }
    if T > 2:  # softplus where it is the identity and where it vanishes
        inputs["dt"][:, 0], inputs["dt"][:, 1] = 25.0, -100.0
    return Case("SelectiveScan", inputs, 1, {})


def state_space_dual(
    T: int, B: int = 2, H: int = 4, P: int = 3, G: int = 2, N: int = 5, huge: bool = False
) -> Case:
    generator = np.random.default_rng([T, B, G])
    draw = generator.standard_normal
    inputs = {
        "x": draw((B, T, H, P)),
        "dt": generator.uniform(0.001, 2.0, (B, T, H)),
        "A": -np.exp(draw(H)),
        "B": draw((B, T, G, N)),
        "C": draw((B, T, G, N)),
        "D": draw((H, P)),
        "state": draw((B, H, N, P)),
    }
    if huge:  # steps that forget everything, beside steps that hardly move
        inputs["dt"][:, ::5] = 300.0
        inputs["dt"][:, 1::5] = 1e-3
    return Case("StateSpaceDual", inputs, 1, {})


def sliding_window_attention(
    T: int, W: int, position: int, B: int = 2, heads: tuple[int, int] = (4, 2), dh: int = 6, R: int = 4
) -> Case:
    generator = np.random.default_rng([T, W, position % 1000])
    draw = generator.standard_normal
    Hq, Hkv = heads
    positions = np.array([position, max(0, position - 1)])[:B].astype(np.int64)
    key, value = draw((B, Hkv, W, dh)), draw((B, Hkv, W, dh))
    for row, seen in enumerate(positions):  # slots that were never written hold zeros
        key[row, :, seen:], value[row, :, seen:] = 0.0, 0.0
    inputs = {
        "q": draw((B, T, Hq, dh)),
        "k": draw((B, T, Hkv, dh)),
        "v": draw((B, T, Hkv, dh)),
        "inv_freq": 10000.0 ** -(np.arange(R // 2) / max(1, R // 2)),
        "key": key,
        "value": value,
        "position": positions,
    }
    return Case("SlidingWindowAttention", inputs, 3, {"scale": dh**-0.5})


def log_mel(
    hops: int,
    window: int = 20,
    hop: int = 8,
    n_fft: int = 20,
    B: int = 2,
    M: int = 5,
    scale: float = 1.0,
    extra: int = 0,
) -> Case:
    """``hops`` hops of noise, its past in whole hops and ``extra`` samples more."""
    draw = np.random.default_rng([hops, window, n_fft]).standard_normal
    inputs = {
        "x": scale * draw((B, hops * hop)),
        "window": reference.hann(window),
        "filters": reference.mel_filters(8000, n_fft, M, 0.0, 4000.0),
        "past": scale * draw((B, -(-window // hop) * hop - hop + extra)),
    }
    return Case("LogMel", inputs, 1, {"hop": hop, "n_fft": n_fft, "eps": 1e-6})


LENGTHS = (0, 1, 2, 3, 17)
#: every radix of an FFT alone and with others, even and odd, primes small and large
POINTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 25, 27, 30, 32, 37, 49, 60, 74, 121, 160, 202, 210, 331, 512)

CASES = [
    *(causal_conv1d(T) for T in LENGTHS),
    *(causal_conv1d(3, K=K, silu=False) for K in (1, 2, 7)),
    *(selective_scan(T) for T in (*LENGTHS, 70)),
    selective_scan(5, B=1, D=1, N=1),
    *(state_space_dual(T) for T in (*LENGTHS, 63, 64, 65, 130)),
    state_space_dual(9, B=1, H=3, G=1, P=1, N=1),
    state_space_dual(70, huge=True),
    *(
        sliding_window_attention(T, W, position)
        for W in (1, 2, 8)
        for T in (0, 1, W - 1, W, W + 1, 3 * W + 1)
        for position in (0, 1, W, 5 * W + 3)
    ),
    sliding_window_attention(5, 8, 3, heads=(3, 1), R=0),
    sliding_window_attention(5, 8, 3, heads=(3, 3), R=6),
    sliding_window_attention(5, 8, 10**4 + 3),
    *(log_mel(hops) for hops in (*LENGTHS, 40)),
    log_mel(3, 20, 20),  # no past at all
    log_mel(3, 20, 7, n_fft=64),
    log_mel(2, 5, 2, n_fft=41, B=1, M=1, extra=3),
    log_mel(3, 400, 160, n_fft=400, M=40),
    log_mel(3, 400, 160, n_fft=512, M=64, scale=1e-4),  # near eps
    log_mel(2, 480, 160, n_fft=2048, M=80),
    *(log_mel(2, n, max(1, n // 2), n_fft=n, M=1) for n in POINTS),
]


def case_name(case: Case) -> str:
    shapes = "-".join("x".join(map(str, value.shape)) for value in list(case.inputs.values())[:2])
    suffix = f"-p{case.inputs['position'][0]}" if "position" in case.inputs else ""
    suffix += f"-{case.attributes['n_fft']}" if "n_fft" in case.attributes else ""
    return f"{case.operator}-{shapes}{suffix}"
