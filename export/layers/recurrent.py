"""What GRU and LSTM share: torch's parameter names, so that its checkpoints load as they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamssm.export.layers.base import StreamingLayer, require_whole


class GatedRecurrence(StreamingLayer):
    """Parameters weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ... of ``gates`` gates."""

    gates: int

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1):
        super().__init__()
        name = type(self).__name__
        require_whole(name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.item_shape = (input_size,)
        self.hidden_size, self.num_layers = hidden_size, num_layers
        rows, bound = self.gates * hidden_size, 1 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            columns = hidden_size if layer else input_size
            shapes = {
                "weight_ih": (rows, columns),
                "weight_hh": (rows, hidden_size),
                "bias_ih": (rows,),
                "bias_hh": (rows,),
            }
            for parameter, shape in shapes.items():
                value = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(f"{parameter}_l{layer}", value)

    def layer_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """weight_ih, weight_hh, bias_ih, bias_hh of one layer."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weight_ih, weight_hh, bias_ih, bias_hh = (getattr(self, f"{name}_l{layer}") for name in names)
        return weight_ih, weight_hh, bias_ih, bias_hh
