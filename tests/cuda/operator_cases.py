"""The operators as the GPU tests and ``drive.py`` call them: data, calls, and what float64 gives."""

import torch
from gpu_models import _f64, native, reference

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {"float32": native.FLOAT32, "float16": native.FLOAT16, "bfloat16": native.BFLOAT16}
# of an output, relative to the largest one: float32 arithmetic, then the rounding of the result
TOLERANCE = {"float32": 3e-6, "float16": 6e-4, "bfloat16": 5e-3}
STATE_TOLERANCE = 3e-6
LONG_TOLERANCE = 2e-5  # over a thousand items and more, of which states with slow decay remember all


class Conv:
    name, state_name = "causal_conv1d", "K"

    def __init__(self, D, K, silu=True):
        self.D, self.K, self.silu = D, K, silu
        self.state_shape, self.x_shape = (K - 1, D), (D,)
        self.weight, self.bias = noise(K, D), noise(D)

    def data(self, B, T, kind):
        return {"x": noise(B, T, self.D).to(kind)}

    def call(self, rows, code, data, state, following, y):
        return native.ConvCall(
            *rows,
            self.D,
            self.K,
            code,
            self.silu,
            at(data["x"]),
            at(self.weight),
            at(self.bias),
            at(state),
            at(following),
            at(y),
        )

    def expected(self, data, state):
        return reference.causal_conv1d(data["x"], _f64(self.weight), _f64(self.bias), state, self.silu)


class Scan:
    name = "selective_scan"

    def __init__(self, D, N):
        self.D, self.N = D, N
        self.state_shape = (N, D)
        self.A, self.skip, self.bias = -8 * torch.rand(N, D, device="cuda"), noise(D), noise(D)

    def data(self, B, T, kind):
        wide = {name: noise(B, T, self.D).to(kind) for name in ("x", "dt", "z")}
        return {**wide, **{name: noise(B, T, self.N).to(kind) for name in ("B", "C")}}

    def call(self, rows, code, data, state, following, y):
        inputs = [at(data[name]) for name in ("x", "dt", "B", "C", "z")]
        rest = [at(t) for t in (self.A, self.skip, self.bias, state, following, y)]
        return native.ScanCall(*rows, self.D, self.N, code, 0, *inputs, *rest)

    def expected(self, data, state):
        d, parameters = data, [_f64(t) for t in (self.A, self.skip, self.bias)]
        return reference.selective_scan(
            d["x"], d["dt"], parameters[0], d["B"], d["C"], *parameters[1:], d["z"], state
        )


class Dual:
    name = "state_space_dual"

    def __init__(self, H, P, G, N):
        self.H, self.P, self.G, self.N = H, P, G, N
        self.state_shape = (H, N, P)
        self.A, self.skip = -1 - 15 * torch.rand(H, device="cuda"), noise(H, P)

    def data(self, B, T, kind):
        groups = {name: noise(B, T, self.G, self.N).to(kind) for name in ("B", "C")}
        dt = (0.1 * torch.rand(B, T, self.H, device="cuda")).to(kind)
        return {"x": noise(B, T, self.H, self.P).to(kind), "dt": dt, **groups}

    def call(self, rows, code, data, state, following, y):
        inputs = [at(data[name]) for name in ("x", "dt", "B", "C")]
        rest = [at(t) for t in (self.A, self.skip, state, following, y)]
        return native.DualCall(*rows, self.H, self.P, self.G, self.N, code, 0, *inputs, *rest)

    def expected(self, data, state):
        d = data
        return reference.state_space_dual(
            d["x"], d["dt"], _f64(self.A), d["B"], d["C"], _f64(self.skip), state
        )


CASES = {
    "conv-1": lambda: Conv(70, 1),
    "conv-2": lambda: Conv(33, 2, silu=False),
    "conv-4": lambda: Conv(1536, 4),
    "conv-7": lambda: Conv(64, 7),
    "scan-1": lambda: Scan(5, 1),
    "scan-16": lambda: Scan(1536, 16),
    "scan-16-odd": lambda: Scan(77, 16),
    "scan-24": lambda: Scan(40, 24),
    "scan-80": lambda: Scan(40, 80),
    "dual-130m": lambda: Dual(24, 64, 1, 128),
    "dual-small": lambda: Dual(4, 8, 2, 16),
    "dual-odd": lambda: Dual(6, 7, 3, 37),
    "dual-wide": lambda: Dual(2, 20, 1, 160),
}
LONG = {"conv-4": CASES["conv-4"], "dual": lambda: Dual(3, 32, 1, 128), "dual-wide": CASES["dual-130m"],
        "dual-64": lambda: Dual(2, 48, 2, 64), "dual-odd": CASES["dual-odd"], "scan": lambda: Scan(192, 16),
        "scan-8": lambda: Scan(128, 8), "scan-24": lambda: Scan(64, 24), "scan-many": lambda: Scan(784, 16),
        "scan-odd": lambda: Scan(771, 5)}  # fmt: skip


def noise(*shape):
    return torch.randn(*shape, device="cuda")


def at(tensor):
    return None if tensor is None else tensor.data_ptr()


def run(library, op, kind, data, state, slots=None, lengths=None, in_place=True):
    """y and the pool after a call; y is NaN before."""
    B, T = next(iter(data.values())).shape[:2]
    y = torch.full_like(data["x"], float("nan"))
    following = state if in_place else torch.full_like(state, float("nan"))
    call = op.call((B, T, at(slots), at(lengths)), CODES[kind], data, state, following, y)
    library.operator(op.name, call, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return y, following


def close(got, expected, tolerance):
    got = _f64(got)
    assert got.shape == expected.shape
    if got.size:
        error = abs(got - expected).max() / max(abs(expected).max(), 1e-30)
        assert error < tolerance, error


def int32(values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")
