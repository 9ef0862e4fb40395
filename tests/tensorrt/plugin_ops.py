"""The operators for the GPU tests: random parameters, data and states, and the float64 reference."""

from __future__ import annotations

import sys

import plugin_builds
import torch

sys.path.append(str(plugin_builds.ROOT))
from kernels import reference
from kernels.reference_mel import hann, mel_filters


def noise(*shape):
    return torch.randn(*shape, device="cuda")


def f64(tensor):
    return tensor.cpu().numpy() if tensor.dtype == torch.int64 else tensor.double().cpu().numpy()


class Conv:
    name, data_names, hop = "CausalConv1d", ("x",), 1

    def __init__(self, D, K, silu=1):
        self.attributes, self.silu = {"silu": silu}, silu
        self.D = D
        self.parameters = {"weight": noise(K, D), "bias": noise(D)}
        self.state_shapes = [(K - 1, D)]

    def data(self, B, T):
        return {"x": noise(B, T, self.D)}

    def inputs(self, data, states):
        return [data["x"], *self.parameters.values(), *states]

    def expected(self, data, states):
        p = {k: f64(v) for k, v in self.parameters.items()}
        return reference.causal_conv1d(data["x"], p["weight"], p["bias"], *states, bool(self.silu))


class Scan:
    name, data_names, hop = "SelectiveScan", ("x", "dt", "B", "C", "z"), 1

    def __init__(self, D, N):
        self.attributes = {}
        self.D, self.N = D, N
        self.A, self.skip, self.bias = -8 * torch.rand(N, D, device="cuda"), noise(D), noise(D)
        self.state_shapes = [(N, D)]

    def data(self, B, T):
        wide = {name: noise(B, T, self.D) for name in ("x", "dt", "z")}
        return {**wide, "B": noise(B, T, self.N), "C": noise(B, T, self.N)}

    def inputs(self, data, states):
        d = data
        return [d["x"], d["dt"], self.A, d["B"], d["C"], self.skip, self.bias, d["z"], *states]

    def expected(self, data, states):
        d, A, skip, bias = data, f64(self.A), f64(self.skip), f64(self.bias)
        return reference.selective_scan(d["x"], d["dt"], A, d["B"], d["C"], skip, bias, d["z"], *states)


class Dual:
    name, data_names, hop = "StateSpaceDual", ("x", "dt", "B", "C"), 1

    def __init__(self, H, P, G, N):
        self.attributes = {}
        self.sizes = H, P, G, N
        self.A, self.skip = -1 - 15 * torch.rand(H, device="cuda"), noise(H, P)
        self.state_shapes = [(H, N, P)]

    def data(self, B, T):
        H, P, G, N = self.sizes
        dt = 0.1 * torch.rand(B, T, H, device="cuda")
        return {"x": noise(B, T, H, P), "dt": dt, "B": noise(B, T, G, N), "C": noise(B, T, G, N)}

    def inputs(self, data, states):
        d = data
        return [d["x"], d["dt"], self.A, d["B"], d["C"], self.skip, *states]

    def expected(self, data, states):
        d = data
        return reference.state_space_dual(
            d["x"], d["dt"], f64(self.A), d["B"], d["C"], f64(self.skip), *states
        )


class Attention:
    name, data_names, hop = "SlidingWindowAttention", ("q", "k", "v"), 1

    def __init__(self, Hq, Hkv, dh, W, R):
        self.sizes = Hq, Hkv, dh
        self.attributes = {"scale": dh**-0.5}
        self.inv_freq = torch.tensor(reference.rotary_frequencies(R), dtype=torch.float32, device="cuda")
        self.state_shapes = [(Hkv, W, dh), (Hkv, W, dh), ()]

    def data(self, B, T):
        Hq, Hkv, dh = self.sizes
        return {"q": noise(B, T, Hq, dh), "k": noise(B, T, Hkv, dh), "v": noise(B, T, Hkv, dh)}

    def inputs(self, data, states):
        return [data["q"], data["k"], data["v"], self.inv_freq, *states]

    def expected(self, data, states):
        d = data
        scale = float(torch.tensor(self.attributes["scale"], dtype=torch.float32))
        return reference.sliding_window_attention(d["q"], d["k"], d["v"], f64(self.inv_freq), *states, scale)


class Mel:
    name, data_names = "LogMel", ("x",)

    def __init__(self, hop, window, n_fft, bands):
        self.hop, self.n_fft = hop, n_fft
        self.attributes = {"hop": hop, "n_fft": n_fft, "eps": 1e-3}
        self.window = torch.tensor(hann(window), dtype=torch.float32, device="cuda")
        filters = mel_filters(16000.0, n_fft, bands, 100.0, 7600.0)
        self.filters = torch.tensor(filters, dtype=torch.float32, device="cuda")
        self.state_shapes = [(window - hop + 3,)]

    def data(self, B, T):
        return {"x": noise(B, T)}

    def inputs(self, data, states):
        return [data["x"], self.window, self.filters, *states]

    def expected(self, data, states):
        eps = float(torch.tensor(1e-3, dtype=torch.float32))
        window, filters = f64(self.window), f64(self.filters)
        return reference.log_mel(data["x"], window, filters, *states, self.hop, self.n_fft, eps)


CASES = {
    "conv-1": lambda: Conv(70, 1),
    "conv-4": lambda: Conv(96, 4),
    "conv-7": lambda: Conv(33, 7, silu=0),
    "scan-16": lambda: Scan(96, 16),
    "scan-24-odd": lambda: Scan(37, 24),
    "scan-80": lambda: Scan(20, 80),
    "dual-128": lambda: Dual(4, 64, 1, 128),
    "dual-odd": lambda: Dual(6, 7, 3, 37),
    "dual-160": lambda: Dual(2, 20, 1, 160),
    "attention": lambda: Attention(4, 2, 32, 50, 32),
    "attention-plain": lambda: Attention(2, 2, 24, 7, 0),
    "log-mel": lambda: Mel(16, 40, 64, 12),
    "log-mel-prime": lambda: Mel(10, 25, 29, 5),
}
