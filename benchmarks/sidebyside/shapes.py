"""The models: shapes, seeded random weights under their published names, and the tokens they are fed.

Used by every peer's process, so it needs numpy and safetensors alone.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """A token model of equal residual blocks: norm, mixer; then a norm and the tied head.

    ``kind`` is "mamba" or "mamba2"; D = expand * d_model, R = ceil(d_model / 16), H = D / headdim.
    """

    name: str
    kind: str
    layers: int
    d_model: int
    d_state: int
    vocabulary: int
    headdim: int = 0
    groups: int = 1
    d_conv: int = 4
    expand: int = 2
    eps: float = 1e-5

    @property
    def d_inner(self) -> int:
        """D, the width of the mixer."""
        return self.expand * self.d_model

    @property
    def dt_rank(self) -> int:
        """R, of Mamba-1 only."""
        return math.ceil(self.d_model / 16)

    @property
    def heads(self) -> int:
        """H, of Mamba-2 only."""
        return self.d_inner // self.headdim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution."""
        extra = 2 * self.groups * self.d_state if self.kind == "mamba2" else 0
        return self.d_inner + extra

    @property
    def state_bytes(self) -> int:
        """float32 bytes that a stream remembers."""
        ssm, conv = self.d_inner * self.d_state, (self.d_conv - 1) * self.conv_width
        return 4 * self.layers * (ssm + conv)

    @property
    def tiny(self) -> bool:
        """Whether call overhead, not bandwidth, bounds it."""
        return self.d_model < 256


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny-mamba", "mamba", layers=4, d_model=64, d_state=16, vocabulary=256),
        Shape("tiny-mamba2", "mamba2", layers=4, d_model=64, d_state=16, vocabulary=256, headdim=32),
        Shape("mamba-130m", "mamba", layers=24, d_model=768, d_state=16, vocabulary=50280),
        Shape("mamba2-130m", "mamba2", layers=24, d_model=768, d_state=128, vocabulary=50288, headdim=64),
    )
}


def draw_weights(shape: Shape, seed: int = 0) -> Weights:
    """Float32 weights under the names of the published checkpoints.

    Their initial distributions, with two changes, so that a peer which drops something is found out:
    norms and skips are not exactly 1, and the projections before the scan are larger, which gives
    the past its say (at the initial scale a lost state moves the logits by 0.3% only).
    """
    rng = np.random.default_rng([seed, *shape.name.encode()])

    def uniform(*size: int, bound: float) -> np.ndarray:
        return rng.uniform(-bound, bound, size).astype(np.float32)

    def near_one(size: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(size)).astype(np.float32)

    weights = {"backbone.embeddings.weight": rng.standard_normal((shape.vocabulary, shape.d_model)) * 0.02}
    for index in range(shape.layers):
        block = f"backbone.layers.{index}"
        weights[f"{block}.norm.weight"] = near_one(shape.d_model)
        for name, value in _mixer(shape, rng, uniform, near_one).items():
            weights[f"{block}.mixer.{name}"] = value
    weights["backbone.norm_f.weight"] = near_one(shape.d_model)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}


def _mixer(shape: Shape, rng, uniform, near_one) -> Weights:
    """One mixer's weights, in the shapes of state-spaces/mamba."""
    d, D, N, R = shape.d_model, shape.d_inner, shape.d_state, shape.dt_rank
    width = shape.conv_width
    second = shape.kind == "mamba2"
    projected = D + width + shape.heads if second else 2 * D
    steps = shape.heads if second else D
    dt = np.exp(rng.uniform(math.log(1e-3), math.log(0.1), steps))
    dt_bias = dt + np.log(-np.expm1(-dt))  # the inverse of softplus
    mixer = {
        "in_proj.weight": uniform(projected, d, bound=1.5 * d**-0.5),
        "conv1d.weight": uniform(width, 1, shape.d_conv, bound=shape.d_conv**-0.5),
        "conv1d.bias": uniform(width, bound=shape.d_conv**-0.5),
        "D": near_one(steps),
        "out_proj.weight": uniform(d, D, bound=(D * shape.layers) ** -0.5),
    }
    if second:
        return mixer | {
            "dt_bias": dt_bias,
            "A_log": np.log(rng.uniform(1, 16, steps)),
            "norm.weight": near_one(D),
        }
    return mixer | {
        "x_proj.weight": uniform(R + 2 * N, D, bound=3 * D**-0.5),
        "dt_proj.weight": uniform(D, R, bound=R**-0.5),
        "dt_proj.bias": dt_bias,
        "A_log": np.log(np.tile(np.arange(1.0, N + 1), (D, 1))),
    }


def linear_parameters(shape: Shape) -> int:
    """Weights of the matrices that are quantised, the tied head counted once."""
    d, D, N, R = shape.d_model, shape.d_inner, shape.d_state, shape.dt_rank
    if shape.kind == "mamba2":
        layer = d * (D + shape.conv_width + shape.heads) + d * D
    else:
        layer = 2 * d * D + D * (R + 2 * N) + D * R + d * D
    return shape.layers * layer + shape.vocabulary * d


def parameters(shape: Shape) -> int:
    """All weights."""
    d, D, N = shape.d_model, shape.d_inner, shape.d_state
    conv = shape.conv_width * (shape.d_conv + 1)
    rest = 3 * shape.heads + D if shape.kind == "mamba2" else D * N + 2 * D
    return linear_parameters(shape) + shape.layers * (conv + rest + d) + d


def weight_bytes(shape: Shape, bits: int) -> int:
    """Bytes of weights that one step must read: matrices of ``bits``, the rest float32, no scales."""
    linear = linear_parameters(shape)
    return linear * bits // 8 + 4 * (parameters(shape) - linear)


def flops(shape: Shape, items: int) -> int:
    """Multiplications and additions of the matrices for ``items`` items, logits of every one."""
    return 2 * linear_parameters(shape) * items


def draw_tokens(shape: Shape, count: int) -> np.ndarray:
    """int64 [count], the same ones for every peer."""
    return np.random.default_rng(1).integers(0, shape.vocabulary, count)


def model_folder(cache: Path, shape: Shape) -> Path:
    """Where the files of this model lie; a change of shape or of its weights changes the folder."""
    text = repr(asdict(shape)) + inspect.getsource(draw_weights) + inspect.getsource(_mixer)
    return cache / "models" / f"{shape.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def weights_file(folder: Path) -> Path:
    """The weights that every peer's own file is made from."""
    return folder / "weights.safetensors"


def save_weights(folder: Path, shape: Shape) -> Path:
    """Write the weights, once."""
    path = weights_file(folder)
    if not path.exists():
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        save_file(draw_weights(shape), draft, {"format": "pt"})
        draft.replace(path)
    return path


def load_weights(folder: Path) -> Weights:
    """Read what :func:`save_weights` wrote."""
    from safetensors.numpy import load_file

    return load_file(weights_file(folder))
