"""One small instance of every layer variant, with odd sizes so that no two dimensions agree."""

from __future__ import annotations

from collections.abc import Callable

import torch

from streamssm.export.layers import (
    GELU,
    GRU,
    LSTM,
    MLP,
    RGLRU,
    Activation,
    Block,
    CausalConv1d,
    Channel,
    ConcatBlock,
    ConcatStack,
    ConvAttention,
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
    MixtureOfExperts,
    MultiHeadMamba,
    Parallel,
    RecurrentBlock,
    Residual,
    RMSNorm,
    RunningNorm,
    Sequential,
    Sigmoid,
    SigmoidMixture,
    SlidingWindowAttention,
    SoftCap,
    Stack,
    StreamingLayer,
    adapted,
)

# one thread: these tensors are too small to share, and two idle threads cost more than the work
torch.set_num_threads(1)

Factory = Callable[[], StreamingLayer]


def shaped(activation: StreamingLayer) -> StreamingLayer:
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
    "embedding scaled": lambda: Embedding(11, 3, scale=1.7),
    "head": lambda: Head(5, 3),
    "head softmax": lambda: Head(5, 3, "softmax"),
    "rms norm": lambda: RMSNorm(7),
    "rms norm weightless": lambda: RMSNorm(7, affine=False),
    "soft cap": lambda: shaped(SoftCap(0.7)),
    "layer norm": lambda: LayerNorm(7),
    "mlp": lambda: GatedMLP(5),
    "mlp bias": lambda: GatedMLP(5, 9, bias=True),
    "mlp gelu": lambda: GatedMLP(5, 9, activation="gelu_tanh"),
    "mlp plain": lambda: MLP(5, 9, bias=True),
    "mlp relu2": lambda: MLP(5, activation="relu2"),
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
    "mamba2 D given": lambda: Mamba2(5, d_state=3, headdim=3, d_inner=18, ngroups=3, out_bias=True),
    "mamba2 K 1": lambda: Mamba2(6, d_state=5, d_conv=1, headdim=12),
}

SWA: dict[str, Factory] = {
    "swa": lambda: SlidingWindowAttention(8, 2, 5),
    "swa MQA": lambda: SlidingWindowAttention(12, 6, 7, num_kv_heads=1),
    "swa GQA": lambda: SlidingWindowAttention(12, 6, 7, num_kv_heads=2, head_dim=4, bias=True),
    "swa no positions": lambda: SlidingWindowAttention(9, 3, 4, rope_base=None),
    "swa partial rotary": lambda: SlidingWindowAttention(8, 1, 6, rotary_dim=4, rope_base=100.0),
    "swa input wider": lambda: SlidingWindowAttention(6, 3, 5, head_dim=4, input_dim=12, scale=0.7),
    "swa bias out only": lambda: SlidingWindowAttention(6, 3, 5, out_bias=True, rotary_dim=2),
    "swa W 1": lambda: SlidingWindowAttention(8, 2, 1),
    "swa W beyond T": lambda: SlidingWindowAttention(8, 2, 50),
}

CONV_ATTENTION: dict[str, Factory] = {
    "conv attention": lambda: ConvAttention(
        6, 4, 5, num_kv_heads=2, head_dim=6, d_conv=3, rotary_dim=4, hidden=7, bias=False
    ),
    "conv attention plain": lambda: ConvAttention(6, 3, 4, out_bias=False, scale=0.7),
}

MULTI_HEAD: dict[str, Factory] = {
    "mamba heads": lambda: MultiHeadMamba(6, 3, d_state=5, dt_rank=2),
    "mamba heads K 1": lambda: MultiHeadMamba(5, 2, d_state=3, d_conv=1, conv_bias=False, bias=True),
}

INNER_NORM: dict[str, Factory] = {
    "mamba inner norm": lambda: Mamba(6, d_state=5, dt_rank=3, inner_norm=1e-3),
    "mamba inner norm weightless": lambda: Mamba(
        6, d_state=3, d_inner=10, dt_rank=2, inner_norm=1e-3, inner_weights=False
    ),
}

EXPERTS: dict[str, Factory] = {
    "moe": lambda: MixtureOfExperts(6, 5, 7, 3),
    "moe renormalised": lambda: MixtureOfExperts(6, 5, 4, 2, renormalise=True, activation="gelu"),
    "moe one of three": lambda: MixtureOfExperts(5, 4, 3, 1),
    "moe all": lambda: MixtureOfExperts(5, 4, 2, 2),
}

SIGMOID_EXPERTS: dict[str, Factory] = {
    "moe sigmoid": lambda: SigmoidMixture(6, 5, 7, 3, scale=1.7),
    "moe sigmoid groups": lambda: SigmoidMixture(6, 5, 9, 3, groups=3, kept_groups=2, activation="gelu"),
    "moe sigmoid latent": lambda: SigmoidMixture(
        7, 5, 4, 2, normalise=False, gated=False, latent=3, bias=True, activation="relu2"
    ),
}

GRIFFIN: dict[str, Factory] = {
    "rg-lru": lambda: RGLRU(6, 3),
    "rg-lru one block": lambda: RGLRU(5),
    "recurrent block": lambda: RecurrentBlock(6, 10, 5),
    "recurrent block K 1": lambda: RecurrentBlock(5, d_conv=1, activation="gelu"),
}

ADAPTED: dict[str, Factory] = {
    "swa adapted": lambda: adapted(SlidingWindowAttention(6, 3, 5), ("q_proj", "v_proj"), 2),
    "mlp adapted": lambda: adapted(GatedMLP(5, 9), ("fc1",), 2),
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


def attention_beside() -> Sequential:
    """Reads 12 channels, gives 6."""
    return Sequential(RMSNorm(12), SlidingWindowAttention(6, 3, 5, head_dim=4, input_dim=12), RMSNorm(6))


def shared_attention() -> ConcatStack:
    """One attention block at two depths, with a state for each."""
    shared = attention_beside()
    blocks = [
        Block(RMSNorm(6), Mamba(6, d_state=3)),
        ConcatBlock(Sequential(shared, Linear(6, 6)), RMSNorm(6), Mamba(6, d_state=3)),
        ConcatBlock(Sequential(shared, Linear(6, 6)), RMSNorm(6), Mamba(6, d_state=3)),
    ]
    return ConcatStack(blocks, RMSNorm(6))


def side_by_side() -> Block:
    mixers = {
        "mamba": Mamba2(8, d_state=3, headdim=4),
        "attention": SlidingWindowAttention(8, 2, 5),
    }
    return Block(RMSNorm(8), Parallel(mixers), RMSNorm(8), Parallel({"a": GatedMLP(8), "b": MLP(8)}))


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
    "stack": lambda: Stack([Block(RMSNorm(6), Mamba(6, d_state=3))], RMSNorm(6)),
    "parallel": side_by_side,
    "concat": lambda: ConcatBlock(attention_beside(), RMSNorm(6), Mamba(6, d_state=3)),
    "concat stack": shared_attention,
    "hybrid": lambda: hybrid(),
    "hybrid layer norm": lambda: hybrid(norm="layer", eps=1e-3, mlp={}),
    "audio model": audio_model,
    "token model": lambda: Sequential(Embedding(11, 8), hybrid(), Head(8, 11)),
}

MORE = CONV_ATTENTION | MULTI_HEAD | ADAPTED | INNER_NORM | EXPERTS | SIGMOID_EXPERTS | GRIFFIN
LAYERS = SIMPLE | CONV | FRONT | MAMBA | MAMBA2 | SWA | RECURRENT | MORE
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
