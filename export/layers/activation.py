"""Element-wise non-linearities, and softmax over the last axis. No state."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StreamingLayer


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=-1)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    y = torch.relu(x)
    return y * y


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _squared_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": _softmax,
}


def activation_function(owner: str, name: str | None) -> Callable[[Tensor], Tensor] | None:
    """The function called ``name``; None for None.

    Raises:
        LayerError: no such activation.
    """
    if name is not None and name not in ACTIVATIONS:
        raise LayerError(f"{owner}: activation {name!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    return None if name is None else ACTIVATIONS[name]


def activation_kind(name: str | None) -> str:
    """Whether values after this activation are "probability" or "features"."""
    return "probability" if name in ("sigmoid", "softmax") else "features"


class Activation(StreamingLayer):
    """x [B, T, ...] -> the same shape."""

    item_shape = None

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.function = activation_function("Activation", name)
        self.output_kind = activation_kind(name)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Apply the function."""
        return self.function(x), self.start(x, state)

    def extra_repr(self) -> str:
        """Name shown when printed."""
        return self.name


class SiLU(Activation):
    """x * sigmoid(x)."""

    def __init__(self) -> None:
        super().__init__("silu")


class GELU(Activation):
    """x times the normal distribution function of x."""

    def __init__(self) -> None:
        super().__init__("gelu")


class ReLU(Activation):
    """max(x, 0)."""

    def __init__(self) -> None:
        super().__init__("relu")


class Tanh(Activation):
    """Hyperbolic tangent."""

    def __init__(self) -> None:
        super().__init__("tanh")


class Sigmoid(Activation):
    """Independent probabilities."""

    def __init__(self) -> None:
        super().__init__("sigmoid")


class Softmax(Activation):
    """Probabilities that add up to one over the last axis."""

    def __init__(self) -> None:
        super().__init__("softmax")
