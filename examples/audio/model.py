"""The voice activity network: log-mel, a short causal convolution, Mamba blocks, one logit a frame.

    x [B, samples] at 16 kHz  ->  logits [B, samples / 160, 1]

Everything carries its state explicitly, so training on cut-up recordings, one long pass and a
live stream are the same function. `exportable` appends the sigmoid.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from dataset import DataError

from streamssm.atomic import replacing
from streamssm.export.layers import (
    CausalConv1d,
    GatedMLP,
    Linear,
    LogMel,
    Mamba,
    Mamba2,
    Residual,
    RMSNorm,
    Sequential,
    Sigmoid,
)

LOG_MEL_MEAN, LOG_MEL_STD = -6.0, 4.0  # of typical sound; only a starting point for training


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network."""

    n_mels: int = 40
    window: int = 400
    n_fft: int = 400
    f_min: float = 60.0
    f_max: float = 7600.0
    conv_width: int = 5
    d_model: int = 80
    blocks: tuple[str, ...] = ("mamba", "mlp", "mamba", "mlp", "mamba")
    d_state: int = 16  # of "mamba"
    d_state_dual: int = 64  # of "mamba2"
    headdim: int = 32  # of "mamba2"
    d_conv: int = 4
    expand: int = 2
    mlp_hidden: int = 160


def build(config: ModelConfig) -> Sequential:
    """An untrained network that gives logits."""
    front = LogMel(
        sample_rate=16_000,
        window=config.window,
        hop=160,
        n_mels=config.n_mels,
        n_fft=config.n_fft,
        f_min=config.f_min,
        f_max=config.f_max,
    )
    lift = CausalConv1d(config.n_mels, config.d_model, config.conv_width)
    _centre(lift, LOG_MEL_MEAN, LOG_MEL_STD)
    blocks = [Residual(Sequential(RMSNorm(config.d_model), _block(b, config))) for b in config.blocks]
    head = (RMSNorm(config.d_model), Linear(config.d_model, 1))
    return Sequential(front, lift, *blocks, *head)


def _centre(lift: CausalConv1d, mean: float, std: float) -> None:
    """Start as if the input had been normalised: fold a fixed mean and deviation into weights."""
    with torch.no_grad():
        lift.weight /= std
        lift.bias -= lift.weight.sum((1, 2)) * mean


def _block(kind: str, c: ModelConfig) -> torch.nn.Module:
    if kind == "mamba":
        return Mamba(c.d_model, d_state=c.d_state, d_conv=c.d_conv, expand=c.expand)
    if kind == "mamba2":
        return Mamba2(c.d_model, c.d_state_dual, c.d_conv, c.expand, c.headdim)
    if kind == "mlp":
        return GatedMLP(c.d_model, c.mlp_hidden)
    raise ValueError(f"unknown block {kind!r}: use 'mamba', 'mamba2' or 'mlp'")


def exportable(network: Sequential) -> Sequential:
    """The network with probabilities [B, frames, 1] instead of logits."""
    return Sequential(network, Sigmoid()).eval()


def parameters(network: torch.nn.Module) -> int:
    """How many trained numbers the network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def save(path: Path, network: Sequential, config: ModelConfig, **notes: object) -> None:
    """Write a checkpoint that `load` can rebuild, whole or not at all."""
    weights = {k: v.cpu() for k, v in network.state_dict().items()}
    with replacing(path) as scratch:
        torch.save({"config": asdict(config), "weights": weights, "notes": notes}, scratch)


def load(path: Path) -> tuple[Sequential, ModelConfig, dict]:
    """The network of a checkpoint, ready to run, with its config and notes.

    Raises:
        DataError: it is no checkpoint of this network.
    """
    stored = stored_in(path)
    try:
        config = ModelConfig(**{**stored["config"], "blocks": tuple(stored["config"]["blocks"])})
        network = build(config)
        network.load_state_dict(stored["weights"])
        return network.eval(), config, stored["notes"]
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        wanted = "give a best.pt that examples/audio/train.py wrote"
        raise DataError(f"{path} is no checkpoint of the voice activity network: {wanted}") from error


def stored_in(path: Path, device: torch.device | str = "cpu") -> dict:
    """What torch wrote into a file.

    Raises:
        DataError: torch did not write it, or it is not whole.
    """
    try:
        stored = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # bytes of another kind fail anywhere inside the unpickler
        raise DataError(f"{path} is no file of torch, or is damaged") from error
    if not isinstance(stored, dict):
        raise DataError(f"{path} is no checkpoint: it holds a {type(stored).__name__}")
    return stored
