"""Random models of the published shapes on the GPU, their fused steps, and the same in float64.

The float64 side is kernels/reference.py on the weights as they were rounded to float16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

try:
    from streamssm.kernels import reference
    from streamssm.kernels.cuda import library as native
except ImportError:  # from a checkout that is not installed, as on a borrowed GPU
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from kernels import reference
    from kernels.cuda import library as native

ROOT = Path(__file__).resolve().parents[1]
EPS = 1e-5


def load() -> native.Library:
    """The CUDA library of this checkout, built if it is not there or does not load."""
    path = Path(os.environ.get("STREAMSSM_CUDA_LIBRARY", ROOT / "build" / "cuda" / "libstreamssm_cuda.so"))
    try:
        return native.Library(path)
    except OSError:
        major, minor = torch.cuda.get_device_capability()
        folder = ROOT / "build" / f"cuda-{major}{minor}"
        environment = {**os.environ, "ARCHS": f"{major}{minor}"}
        build = ["sh", "kernels/cuda/build.sh", str(folder)]
        subprocess.run(build, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        return native.Library(folder / "libstreamssm_cuda.so")


def _random(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def _time_bias(count: int) -> torch.Tensor:
    """Biases whose softplus lies between 0.001 and 0.1, as at the start of training."""
    dt = torch.exp(torch.rand(count, device="cuda") * np.log(100.0) + np.log(0.001))
    return dt + torch.log(-torch.expm1(-dt))


def _f64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


class Stack:
    """What the two kinds share: embedding, norms, states in a pool, the step and its float64 twin."""

    kind: str
    layer_type: type
    d_model = 768
    K = 4

    def __init__(self, layers: int, vocabulary: int, slots: int = 1):
        self.layers, self.vocabulary, self.slots = layers, vocabulary, slots
        self.embedding = _random(vocabulary, self.d_model, dtype=torch.float16)
        self.norm = 1 + _random(self.d_model, scale=0.1)
        self.weights = [self.random_layer() for _ in range(layers)]
        self.conv, self.ssm = (
            torch.zeros(layers, slots, *shape, device="cuda") for shape in self.state_shapes()
        )
        self.logits = torch.full((vocabulary,), float("nan"), device="cuda")
        self._reference = None

    def random_layer(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def state_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        raise NotImplementedError

    def model(self, layers: ctypes.Array) -> ctypes.Structure:  # noqa: F821
        raise NotImplementedError

    def weight_bytes(self) -> int:
        """What a step has to read of the weights."""
        tensors = [t for layer in self.weights for t in layer.values()]
        return sum(t.nbytes for t in [*tensors, self.embedding, self.norm])

    def state_bytes(self) -> int:
        """What a step has to read and write of one stream's states."""
        return 2 * (self.conv[:, 0].nbytes + self.ssm[:, 0].nbytes)

    def create(self, library: native.Library) -> None:
        pointers = [{name: t.data_ptr() for name, t in layer.items()} for layer in self.weights]
        array = (self.layer_type * self.layers)(*(self.layer_type(**p) for p in pointers))
        self.library, self.handle = library, library.create(self.kind, self.model(array))

    def destroy(self) -> None:
        torch.cuda.synchronize()
        self.library.destroy(self.kind, self.handle)

    def call(self, token=None, x=None, slot=None, target=None) -> native.StepCall:
        """The arguments of a step, in place unless ``target`` names the next (conv, ssm)."""
        conv, ssm = target or (self.conv, self.ssm)
        pointer = [None if t is None else t.data_ptr() for t in (token, x, slot)]
        return native.StepCall(
            *pointer,
            self.conv.data_ptr(), conv.data_ptr(), self.conv.stride(0), self.conv.stride(1),
            self.ssm.data_ptr(), ssm.data_ptr(), self.ssm.stride(0), self.ssm.stride(1),
            self.logits.data_ptr(),
        )  # fmt: skip

    def step(self, call: native.StepCall) -> None:
        self.library.step(self.kind, self.handle, call, torch.cuda.current_stream().cuda_stream)

    def mixer(self, x, weights, state):
        raise NotImplementedError

    def reference_step(
        self, x: np.ndarray, states: list[dict], head: bool = True
    ) -> tuple[np.ndarray, list[dict]]:
        """x [B, d_model] -> logits (without ``head`` what they are made from) and the next states, in
        float64."""
        if self._reference is None:
            named = [{self.names().get(k, k): _f64(v) for k, v in w.items()} for w in self.weights]
            self._reference = [self.for_reference(w) for w in named], _f64(self.embedding), _f64(self.norm)
        layers, embedding, norm = self._reference
        after = []
        for weights, state in zip(layers, states, strict=True):
            y, state = self.mixer(reference.rms_norm(x, weights["norm"], EPS), weights, state)
            x = x + y
            after.append(state)
        x = reference.rms_norm(x, norm, EPS)
        return x @ embedding.T if head else x, after

    def names(self) -> dict[str, str]:
        projections = ("in_proj", "x_proj", "dt_proj", "out_proj")
        return {**{n: f"{n}.weight" for n in projections}, "conv_bias": "conv1d.bias", "skip": "D"}

    def for_reference(self, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        w["conv1d.weight"] = w["conv_weight"].T[:, None]
        w["A_log"] = np.log(-w["A"]).T
        return w

    def states(self, slot: int = 0) -> list[dict]:
        """The states of a slot for the float64 side."""
        return [
            {"conv": _f64(c[slot : slot + 1]), "ssm": _f64(s[slot : slot + 1])}
            for c, s in zip(self.conv, self.ssm, strict=True)
        ]

    def input_of(self, token: int) -> np.ndarray:
        return _f64(self.embedding[token : token + 1])


class Mamba(Stack):
    """mamba1_130m for 24 layers and a vocabulary of 50,280."""

    kind, layer_type = "mamba", native.MambaLayer
    D, N, R = 1536, 16, 48

    def random_layer(self) -> dict[str, torch.Tensor]:
        half, d, D, N, R = torch.float16, self.d_model, self.D, self.N, self.R
        return {
            "norm": 1 + _random(d, scale=0.1),
            "in_proj": _random(2 * D, d, scale=d**-0.5, dtype=half),
            "x_proj": _random(R + 2 * N, D, scale=D**-0.5, dtype=half),
            "dt_proj": _random(D, R, scale=R**-0.5, dtype=half),
            "out_proj": _random(d, D, scale=D**-0.5, dtype=half),
            "conv_weight": _random(self.K, D, scale=0.5),
            "conv_bias": _random(D, scale=0.1),
            "dt_bias": _time_bias(D),
            "A": -torch.arange(1, N + 1, device="cuda").float()[:, None].repeat(1, D).contiguous(),
            "skip": 1 + _random(D, scale=0.1),
        }

    def state_shapes(self):
        return (self.K - 1, self.D), (self.N, self.D)

    def model(self, layers):
        shape = (self.layers, self.d_model, self.D, self.N, self.R, self.K, self.vocabulary, 0, EPS)
        return native.MambaModel(*shape, layers, self.norm.data_ptr(), self.embedding.data_ptr())

    def names(self):
        return {**super().names(), "dt_bias": "dt_proj.bias"}

    def mixer(self, x, weights, state):
        return reference.mamba_mixer_step(x, weights, state)


class Mamba2(Stack):
    """mamba2_130m for 24 layers and a vocabulary of 50,288."""

    kind, layer_type = "mamba2", native.Mamba2Layer
    H, P, G, N = 24, 64, 1, 128
    dt_limit = (0.0, float("inf"))

    def random_layer(self) -> dict[str, torch.Tensor]:
        half, d, D, W = torch.float16, self.d_model, self.H * self.P, 2 * self.G * self.N
        return {
            "norm": 1 + _random(d, scale=0.1),
            "in_proj": _random(2 * D + W + self.H, d, scale=d**-0.5, dtype=half),
            "out_proj": _random(d, D, scale=D**-0.5, dtype=half),
            "conv_weight": _random(self.K, D + W, scale=0.5),
            "conv_bias": _random(D + W, scale=0.1),
            "dt_bias": _time_bias(self.H),
            "A": -1 - 15 * torch.rand(self.H, device="cuda"),
            "skip": (1 + _random(self.H, scale=0.1)).repeat_interleave(self.P).contiguous(),
            "gate_norm": 1 + _random(D, scale=0.1),
        }

    def state_shapes(self):
        return (self.K - 1, self.H * self.P + 2 * self.G * self.N), (self.H, self.N, self.P)

    def model(self, layers):
        shape = (
            self.layers,
            self.d_model,
            self.H,
            self.P,
            self.G,
            self.N,
            self.K,
            self.vocabulary,
            EPS,
            *self.dt_limit,
        )
        return native.Mamba2Model(*shape, layers, self.norm.data_ptr(), self.embedding.data_ptr())

    def names(self):
        return {**super().names(), "gate_norm": "norm.weight"}

    def mixer(self, x, weights, state):
        return reference.mamba2_mixer_step(
            x,
            weights,
            state,
            ngroups=self.G,
            dt_limit=self.dt_limit,
            norm_group_size=self.H * self.P,
            eps=EPS,
        )
