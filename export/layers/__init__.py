"""Streaming layers. Each takes any T >= 0 with a carried state; see :mod:`.base` for the contract."""

from streamssm.export.layers.activation import GELU, Activation, ReLU, Sigmoid, SiLU, Softmax, Tanh
from streamssm.export.layers.adapter import AdaptedLinear, adapted
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
from streamssm.export.layers.concat import ConcatBlock, ConcatStack
from streamssm.export.layers.containers import Residual, Sequential
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.layers.conv_attention import ConvAttention
from streamssm.export.layers.delay import Delay
from streamssm.export.layers.embedding import Embedding
from streamssm.export.layers.gru import GRU
from streamssm.export.layers.head import Head
from streamssm.export.layers.heads import Heads
from streamssm.export.layers.hybrid import HybridStack
from streamssm.export.layers.layer_norm import LayerNorm
from streamssm.export.layers.linear import Linear
from streamssm.export.layers.log_mel import LogMel
from streamssm.export.layers.lstm import LSTM
from streamssm.export.layers.mamba import Mamba
from streamssm.export.layers.mamba2 import Mamba2
from streamssm.export.layers.mamba_heads import MultiHeadMamba
from streamssm.export.layers.mlp import MLP, GatedMLP
from streamssm.export.layers.moe import MixtureOfExperts
from streamssm.export.layers.moe_sigmoid import SigmoidMixture
from streamssm.export.layers.parallel import Parallel
from streamssm.export.layers.ragged import forward_ragged, masked_step
from streamssm.export.layers.rg_lru import RGLRU, RecurrentBlock
from streamssm.export.layers.rms_norm import GatedRMSNorm, RMSNorm
from streamssm.export.layers.running_norm import RunningNorm
from streamssm.export.layers.soft_cap import SoftCap
from streamssm.export.layers.stack import Block, Stack

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "RGLRU",
    "Activation",
    "AdaptedLinear",
    "Block",
    "CausalConv1d",
    "Channel",
    "ConcatBlock",
    "ConcatStack",
    "ConvAttention",
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
    "MixtureOfExperts",
    "MultiHeadMamba",
    "Parallel",
    "RMSNorm",
    "ReLU",
    "RecurrentBlock",
    "Residual",
    "RunningNorm",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SigmoidMixture",
    "SlidingWindowAttention",
    "SoftCap",
    "Softmax",
    "Stack",
    "State",
    "StateSpec",
    "StreamingLayer",
    "Tanh",
    "adapted",
    "forward_ragged",
    "masked_step",
    "output_shape",
    "scoped",
    "state_bytes",
    "with_scope",
]
