"""The networks: six axes of a watch to a score for each exercise at every sample.

    x [B, T, 6] at 50 Hz (g, rad/s)  ->  logits [B, T, 7]

The one that ships is shallow and wide: two causal convolutions look for patterns of a few tenths of a second,
exponential averages of what they find and of its square, over half a second to six, say how often and
how strongly it was there, and a linear layer reads them. Averages are a linear state-space model with fixed
decays. A stack of Mamba-2 blocks is the other kind (`blocks`).

The scale of the axes is in the first layer's weights, so that a host pushes what its sensor gives.
`exportable` appends the softmax.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wrist_data import AXES, LABELS

from streamssm.atomic import replacing
from streamssm.export.layers import (
    CausalConv1d,
    GatedMLP,
    Linear,
    Mamba2,
    Parallel,
    Residual,
    RMSNorm,
    Sequential,
    SiLU,
    Softmax,
    StateSpec,
    StreamingLayer,
)
from streamssm.export.ops import state_space_dual

LARGE = 1024  # numbers in a matrix that is stored as int8
SCALE = (0.7, 0.7, 0.7, 1.5, 1.5, 1.5)  # typical deviation of each axis; only a starting point for training


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network."""

    conv_width: int = 9
    d_model: int = 48
    blocks: tuple[str, ...] = ("mamba2", "mlp", "mamba2", "mlp", "mamba2")
    d_state: int = 32
    d_conv: int = 4
    headdim: int = 24
    mlp_hidden: int = 96
    dt_min: float = 0.003
    dt_max: float = 0.3
    dropout: float = 0.1
    wide: int = 192
    wide_width: int = 9
    wide_dilation: int = 4
    squares: bool = False
    spans: tuple[float, ...] = (25.0, 100.0, 300.0)


class Dropout(StreamingLayer):
    """Zeroes channels of whole sequences while training; in a trained network it does nothing."""

    def __init__(self, p: float):
        super().__init__()
        self.item_shape, self.p = None, p

    def forward(self, x: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        """x [B, T, channels], alike."""
        if self.training and self.p:
            x = x * torch.nn.functional.dropout(torch.ones_like(x[:, :1]), self.p)
        return x, {}


class WithSquares(StreamingLayer):
    """x [B, T, dim] -> [B, T, 2 dim]: x and its square, so that averages know the spread."""

    def __init__(self, dim: int):
        super().__init__()
        self.item_shape = (dim,)

    def forward(self, x: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        """Append."""
        return torch.cat([x, x * x], -1), self.start(x, state)


class Averages(StreamingLayer):
    """x [B, T, dim] -> [B, T, dim * len(spans)]: exponential averages over so many samples each.

    Averages begin at the first sample: they are sums over sums of their weights. A linear recurrence
    with one decay for each span is StateSpaceDual with a head for each, N = 1 and dt = 1.
    State: ``sums`` [B, spans, 1, dim + 1], the last channel that of the weights.
    """

    def __init__(self, dim: int, spans: tuple[float, ...]):
        super().__init__()
        self.item_shape, self.spans = (dim,), spans
        self.register_constant("log_decay", torch.tensor([-1 / span for span in spans]))

    def state_spec(self) -> dict[str, StateSpec]:
        """The sums."""
        return {"sums": StateSpec((len(self.spans), 1, self.item_shape[0] + 1))}

    def forward(self, x: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        """Add each sample to the sums."""
        state = self.start(x, state)
        H = len(self.spans)
        one = torch.ones_like(x[..., :1])
        items = torch.cat([x, one], -1)[:, :, None].expand(-1, -1, H, -1)
        column, skip = one[:, :, None], x.new_zeros(H, x.shape[-1] + 1)
        each = one.expand(-1, -1, H)
        y, sums = state_space_dual(items, each, self.log_decay, column, column, skip, state["sums"])
        return (y[..., :-1] / y[..., -1:]).flatten(2), {"sums": sums}


def build(config: ModelConfig) -> Sequential:
    """An untrained network that gives logits."""
    if config.blocks == ("averages",):
        return _shallow(config)
    d = config.d_model
    lift = CausalConv1d(len(AXES), d, config.conv_width, activation="silu")
    with torch.no_grad():
        lift.weight /= torch.tensor(SCALE)[:, None]
    blocks = [_residual(kind, config) for kind in config.blocks]
    return Sequential(lift, Linear(d, d), *blocks, RMSNorm(d), Linear(d, len(LABELS)))


def _shallow(c: ModelConfig) -> Sequential:
    d, F = c.d_model, c.wide
    lift = CausalConv1d(len(AXES), d, c.conv_width, activation="silu")
    with torch.no_grad():
        lift.weight /= torch.tensor(SCALE)[:, None]
    patterns = CausalConv1d(d, F, c.wide_width, dilation=c.wide_dilation)
    seen = [RMSNorm(F), SiLU()] + ([WithSquares(F)] if c.squares else [])
    F *= 1 + c.squares
    last = len(c.spans) * F
    return Sequential(
        *(lift, Linear(d, d), RMSNorm(d), patterns, *seen, Averages(F, c.spans)),
        *(RMSNorm(last), Dropout(c.dropout), Linear(last, len(LABELS))),
    )


def _residual(kind: str, c: ModelConfig) -> Residual:
    if kind == "mamba2":
        steps = {"dt_min": c.dt_min, "dt_max": c.dt_max}
        mixer = Mamba2(c.d_model, d_state=c.d_state, d_conv=c.d_conv, headdim=c.headdim, **steps)
    elif kind == "mlp":
        mixer = GatedMLP(c.d_model, c.mlp_hidden)
    else:
        raise ValueError(f"unknown block {kind!r}: use 'mamba2' or 'mlp', or 'averages' alone")
    dropout = [Dropout(c.dropout)] if c.dropout else []
    return Residual(Sequential(RMSNorm(c.d_model), mixer, *dropout))


def ensemble(networks: Sequence[Sequential]) -> Sequential:
    """The networks side by side, [B, T, 7]: the mean of their logits."""
    parts = [copy.deepcopy(network) for network in networks]
    with torch.no_grad():
        for part in parts:
            last = part[len(part) - 1]
            last.weight /= len(parts)
            last.bias /= len(parts)
    return Sequential(Parallel({f"net{place}": part for place, part in enumerate(parts)}))


def exportable(networks: Sequence[Sequential]) -> Sequential:
    """Their mean with probabilities [B, T, 7] instead of logits."""
    return Sequential(*(layer for _, layer in ensemble(networks).layers), Softmax()).eval()


def parameters(network: torch.nn.Module) -> int:
    """How many trained numbers the network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def save(
    path: Path, networks: Mapping[str, Sequential], config: ModelConfig, notes: Mapping[str, Any]
) -> None:
    """Write networks of one kind with their config: matrices as int8 with a scale for each output, the rest
    in 16 bits."""
    content = {"about": np.array(json.dumps({"config": asdict(config), "notes": dict(notes)}))}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            content |= _packed(f"{name}:{key}", value.detach().cpu().numpy())
    with replacing(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **content)


def load(path: Path) -> tuple[dict[str, Sequential], ModelConfig, dict[str, Any]]:
    """The networks of a file by name, ready to run, with their config and notes."""
    with np.load(path) as stored:
        content = {key: stored[key] for key in stored.files}
    about = json.loads(str(content.pop("about")))
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}
    config = ModelConfig(**settings)
    weights: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        name, _, parameter = key.removesuffix("/scale").partition(":")
        if not key.endswith("/scale"):
            scale = content.get(f"{key}/scale")
            whole = value.astype(np.float32) if scale is None else value * scale.astype(np.float32)
            weights.setdefault(name, {})[parameter] = torch.from_numpy(whole)
    networks = {}
    for name, state in weights.items():
        networks[name] = build(config).eval()
        networks[name].load_state_dict(state)
    return networks, config, about["notes"]


def _packed(key: str, value: np.ndarray) -> dict[str, np.ndarray]:
    if value.size < LARGE:
        return {key: value.astype(np.float16)}
    axes = tuple(range(1, value.ndim))
    scale = np.maximum(np.abs(value).max(axes, keepdims=True) / 127, 1e-8).astype(np.float32)
    return {key: np.round(value / scale).astype(np.int8), f"{key}/scale": scale}
