"""One small instance of every layer variant, with odd sizes so that no two dimensions agree."""

from __future__ import annotations

from collections.abc import Callable

import torch

from streamssm.export.layers import (
    GELU,
    GRU,
    LSTM,
    Activation,
    CausalConv1d,
    Channel,
    Delay,
    Embedding,
    GatedMLP,
    Head,
    Heads,
    HybridStack,
    LayerNorm,
    Linear,
    LogMel,
    Mamba,
    Mamba2,
    Residual,
    RMSNorm,
    RunningNorm,
    Sequential,
    Sigmoid,
    SlidingWindowAttention,
    StreamingLayer,
)

# one thread: these tensors are too small to share, and two idle threads cost more than the work
torch.set_num_threads(1)

Factory = Callable[[], StreamingLayer]


def shaped(activation: Activation) -> Activation:
    activation.item_shape = (5,)
    return activation


SIMPLE: dict[str, Factory] = {
    "linear": lambda: Linear(5, 3),
    "linear no bias": lambda: Linear(5, 3, bias=False),
    "gelu": lambda: shaped(GELU()),
    "sigmoid": lambda: shaped(Sigmoid()),
    "softmax": lambda: shaped(Activation("softmax")),
    "channel": lambda: Channel(),
    "embedding": lambda: Embedding(11, 3),
    "head": lambda: Head(5, 3),
    "head softmax": lambda: Head(5, 3, "softmax"),
    "rms norm": lambda: RMSNorm(7),
    "layer norm": lambda: LayerNorm(7),
    "mlp": lambda: GatedMLP(5),
    "mlp bias": lambda: GatedMLP(5, 9, bias=True),
    "delay": lambda: Delay(3, (5,)),
    "delay of nothing": lambda: Delay(0, (5,)),
    "delay of scalars": lambda: Delay(30),
}

CONV: dict[str, Factory] = {
    "conv": lambda: CausalConv1d(3, 5, 4),
    "conv K 1": lambda: CausalConv1d(3, 5, 1),
    "conv K beyond T": lambda: CausalConv1d(3, 5, 40, activation="relu"),
    "conv dilation": lambda: CausalConv1d(3, 5, 3, dilation=2, bias=False),
    "conv stride 2": lambda: CausalConv1d(3, 5, 5, stride=2, activation="silu"),
    "conv stride 3": lambda: CausalConv1d(3, 5, 4, stride=3),
    "conv stride beyond K": lambda: CausalConv1d(3, 5, 2, stride=3),
    "conv stride and dilation": lambda: CausalConv1d(3, 5, 3, stride=2, dilation=3),
    "conv groups": lambda: CausalConv1d(6, 4, 3, groups=2, lookahead=1),
    "conv groups and stride": lambda: CausalConv1d(6, 9, 4, stride=3, groups=3, lookahead=3),
    "conv depthwise": lambda: CausalConv1d(6, 6, 4, groups=6, activation="silu"),
    "conv depthwise gelu": lambda: CausalConv1d(6, 6, 3, groups=6, bias=False, activation="gelu"),
    "conv depthwise K 1": lambda: CausalConv1d(6, 6, 1, groups=6, activation="silu"),
    "conv depthwise dilation": lambda: CausalConv1d(6, 6, 3, groups=6, dilation=2),
}

FRONT: dict[str, Factory] = {
    "log mel": lambda: LogMel(1000, 25, 10, 5, n_fft=32),
    "log mel whole hops": lambda: LogMel(1000, 32, 8, 6, f_min=20, f_max=450),
    "log mel no overlap": lambda: LogMel(1000, 16, 16, 3, eps=1e-3),
    "running norm": lambda: RunningNorm(5, 7.5),
    "running norm slow": lambda: RunningNorm(3, 1000.0),
}

MAMBA: dict[str, Factory] = {
    "mamba": lambda: Mamba(6, d_state=5),
    "mamba no conv bias": lambda: Mamba(6, d_state=3, d_conv=3, dt_rank=2, conv_bias=False, bias=True),
    "mamba K 1": lambda: Mamba(6, d_state=3, d_conv=1, expand=1),
    "mamba N 1": lambda: Mamba(5, d_state=1, d_conv=2, expand=3),
}

MAMBA2: dict[str, Factory] = {
    "mamba2": lambda: Mamba2(6, d_state=5, headdim=4),
    "mamba2 groups": lambda: Mamba2(8, d_state=3, headdim=4, ngroups=2, norm_group_size=8),
    "mamba2 clipped": lambda: Mamba2(6, d_state=5, headdim=3, dt_limit=(0.02, 0.05)),
    "mamba2 clipped below": lambda: Mamba2(6, d_state=5, headdim=3, dt_limit=(0.03, None)),
    "mamba2 norm first": lambda: Mamba2(6, d_state=5, headdim=4, norm_before_gate=True, norm_group_size=4),
    "mamba2 D per channel": lambda: Mamba2(6, d_state=5, headdim=4, d_has_hdim=True, bias=True),
    "mamba2 no norm": lambda: Mamba2(6, d_state=5, d_conv=2, headdim=4, rmsnorm=False, conv_bias=False),
    "mamba2 K 1": lambda: Mamba2(6, d_state=5, d_conv=1, headdim=12),
}

SWA: dict[str, Factory] = {
    "swa": lambda: SlidingWindowAttention(8, 2, 5),
    "swa MQA": lambda: SlidingWindowAttention(12, 6, 7, num_kv_heads=1),
    "swa GQA": lambda: SlidingWindowAttention(12, 6, 7, num_kv_heads=2, head_dim=4, bias=True),
    "swa no positions": lambda: SlidingWindowAttention(9, 3, 4, rope_base=None),
    "swa partial rotary": lambda: SlidingWindowAttention(8, 1, 6, rotary_dim=4, rope_base=100.0),
    "swa W 1": lambda: SlidingWindowAttention(8, 2, 1),
    "swa W beyond T": lambda: SlidingWindowAttention(8, 2, 50),
}

RECURRENT: dict[str, Factory] = {
    "gru": lambda: GRU(3, 5),
    "gru 2 layers": lambda: GRU(3, 5, 2),
    "lstm": lambda: LSTM(3, 5),
    "lstm 2 layers": lambda: LSTM(3, 5, 2),
}


def hybrid(**options: object) -> HybridStack:
    sizes = {
        "mamba": {"d_state": 3},
        "mamba2": {"d_state": 3, "headdim": 4},
        "swa": {"num_heads": 2, "window": 5},
    }
    return HybridStack(["mamba", "mamba2", "swa", "gru", "lstm"], 8, **sizes, **options)


def audio_model() -> Sequential:
    return Sequential(
        {
            "front_end": LogMel(1000, 25, 10, 5, n_fft=32),
            "normalise": RunningNorm(5, 20),
            "stem": CausalConv1d(5, 8, 3, stride=2, lookahead=2),
            "backbone": hybrid(mlp={"hidden": 6}),
            "head": Head(8, 3, "softmax"),
        }
    )


CONTAINERS: dict[str, Factory] = {
    "sequential": lambda: Sequential(Linear(3, 5), CausalConv1d(5, 4, 3), Head(4, 2)),
    "sequential strides": lambda: Sequential(
        CausalConv1d(3, 4, 3, stride=2), CausalConv1d(4, 5, 4, stride=3, lookahead=3)
    ),
    "residual": lambda: Residual(Mamba(6, d_state=3)),
    "residual with look-ahead": lambda: Residual(
        Sequential(CausalConv1d(6, 6, 5, lookahead=3), CausalConv1d(6, 6, 3, lookahead=2))
    ),
    "heads": lambda: Sequential(
        GRU(3, 5), Heads({"event": Head(5, 2, "sigmoid"), "class": Residual(RMSNorm(5))})
    ),
    "hybrid": lambda: hybrid(),
    "hybrid layer norm": lambda: hybrid(norm="layer", eps=1e-3, mlp={}),
    "audio model": audio_model,
    "token model": lambda: Sequential(Embedding(11, 8), hybrid(), Head(8, 11)),
}

LAYERS = SIMPLE | CONV | FRONT | MAMBA | MAMBA2 | SWA | RECURRENT
GRID = LAYERS | CONTAINERS


def make(name: str) -> StreamingLayer:
    """The instance called ``name``, with weights that depend on nothing but its name."""
    torch.manual_seed(sum(name.encode()))
    layer = GRID[name]()
    with torch.no_grad():  # norms and skips away from the ones and zeros they start at
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


def items(layer: StreamingLayer, batch: int, T: int, seed: int = 0) -> torch.Tensor:
    """Random input [batch, T, *item_shape]."""
    generator = torch.Generator().manual_seed(seed)
    if layer.vocabulary is not None:
        return torch.randint(layer.vocabulary, (batch, T), generator=generator)
    return torch.randn((batch, T, *layer.item_shape), generator=generator)
