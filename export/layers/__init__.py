"""Streaming layers. Each takes any T >= 0 with a carried state; see :mod:`.base` for the contract."""

from streamssm.export.layers.activation import GELU, Activation, ReLU, Sigmoid, SiLU, Softmax, Tanh
from streamssm.export.layers.attention import SlidingWindowAttention
from streamssm.export.layers.base import (
    State,
    StateSpec,
    StreamingLayer,
    output_shape,
    scoped,
    state_bytes,
    with_scope,
)
from streamssm.export.layers.channel import Channel
from streamssm.export.layers.containers import Residual, Sequential
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.layers.delay import Delay
from streamssm.export.layers.embedding import Embedding
from streamssm.export.layers.gru import GRU
from streamssm.export.layers.head import Head
from streamssm.export.layers.heads import Heads
from streamssm.export.layers.hybrid import Block, HybridStack
from streamssm.export.layers.layer_norm import LayerNorm
from streamssm.export.layers.linear import Linear
from streamssm.export.layers.log_mel import LogMel
from streamssm.export.layers.lstm import LSTM
from streamssm.export.layers.mamba import Mamba
from streamssm.export.layers.mamba2 import Mamba2
from streamssm.export.layers.mlp import GatedMLP
from streamssm.export.layers.ragged import forward_ragged, masked_step
from streamssm.export.layers.rms_norm import GatedRMSNorm, RMSNorm
from streamssm.export.layers.running_norm import RunningNorm

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "Activation",
    "Block",
    "CausalConv1d",
    "Channel",
    "Delay",
    "Embedding",
    "GatedMLP",
    "GatedRMSNorm",
    "Head",
    "Heads",
    "HybridStack",
    "LayerNorm",
    "Linear",
    "LogMel",
    "Mamba",
    "Mamba2",
    "RMSNorm",
    "ReLU",
    "Residual",
    "RunningNorm",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SlidingWindowAttention",
    "Softmax",
    "State",
    "StateSpec",
    "StreamingLayer",
    "Tanh",
    "forward_ragged",
    "masked_step",
    "output_shape",
    "scoped",
    "state_bytes",
    "with_scope",
]
