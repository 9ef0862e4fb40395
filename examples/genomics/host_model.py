"""The host network: wide convolutions over bases, Mamba-2 blocks at every fifth, a logit every hundred.

    x [B, bases] tokens of ACGTN  ->  logits [B, bases / 100, 1]

`exportable` appends the calibration and the sigmoid.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from genomes import DataError

from streamssm.atomic import replacing
from streamssm.export.layers import (
    GELU,
    Block,
    CausalConv1d,
    Embedding,
    Mamba2,
    RMSNorm,
    Sequential,
    Sigmoid,
    Stack,
)

VOCABULARY = 5  # A, C, G, T, N
HOP = 100  # bases between answers


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network."""

    embedding: int = 8
    stem: int = 64
    stem_width: int = 9
    stride: int = 5
    stride_width: int = 10
    d_model: int = 192
    layers: int = 6
    d_state: int = 64
    d_conv: int = 4
    headdim: int = 64
    expand: int = 2


def build(c: ModelConfig) -> Sequential:
    """An untrained network that gives logits."""
    table = Embedding(VOCABULARY, c.embedding)
    torch.nn.init.normal_(table.weight, std=1.0)
    lift = CausalConv1d(c.embedding, c.stem, c.stem_width)
    step = CausalConv1d(c.stem, c.d_model, c.stride_width, stride=c.stride)
    blocks = [
        Block(
            RMSNorm(c.d_model),
            Mamba2(c.d_model, c.d_state, c.d_conv, c.expand, c.headdim),
        )
        for _ in range(c.layers)
    ]
    items = HOP // c.stride
    head = CausalConv1d(c.d_model, 1, items, stride=items)
    return Sequential(table, lift, GELU(), step, Stack(blocks, RMSNorm(c.d_model)), head)


def exportable(network: Sequential) -> Sequential:
    """The network with probabilities [B, bases / 100, 1] instead of logits."""
    return Sequential(network, Sigmoid()).eval()


def rescale(network: Sequential, scale: float, shift: float) -> None:
    """Let logits become scale x + shift: both go into the last layer."""
    head = network[-1]
    with torch.no_grad():
        head.weight *= scale
        head.bias.copy_(head.bias * scale + shift)


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
        config = ModelConfig(**stored["config"])
        network = build(config)
        network.load_state_dict(stored["weights"])
        return network.eval(), config, stored["notes"]
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        wanted = "give a best.pt that examples/genomics/train.py wrote"
        raise DataError(f"{path} is no checkpoint of the host network: {wanted}") from error


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
