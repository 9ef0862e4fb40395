"""Zamba (Glorioso et al. 2024): Mamba layers with several heads, and one attention block that is
shared by all "hybrid" layers and reads the hidden items beside the embeddings.

    model.embed_tokens.weight
    model.layers.{i}.input_layernorm.weight, .mamba.*                  a Mamba layer
    model.layers.{i}.mamba_decoder.input_layernorm.weight, .mamba.*    a hybrid layer
    model.layers.{i}.linear.weight                                     from the shared block to the layer
    model.layers.{i}.shared_transf.*                                   the block, at its first use only
    model.final_layernorm.weight
    lm_head.weight                                                     tied as a rule
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from streamssm.export.checkpoints.family import Family, Keys, Plan, Source, renaming
from streamssm.export.checkpoints.hybrids import (
    ROTARY,
    Sources,
    activation,
    gated,
    imposed_window,
    layer_types,
)
from streamssm.export.checkpoints.parts import language_model, whole_or_auto
from streamssm.export.layers import (
    Block,
    ConcatBlock,
    ConcatStack,
    GatedMLP,
    Linear,
    MultiHeadMamba,
    RMSNorm,
    Sequential,
    SlidingWindowAttention,
    StreamingLayer,
)

TYPES = ("linear_attention", "hybrid")


def build(config: Keys, window: int | None) -> Plan:
    """The model from its config."""
    config.require("hidden_mamba_act", "silu", "swish", default="silu")
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-5, minimum=0)
    types = layer_types(config, "layers_block_type", TYPES, default=_pattern(config))
    hybrids = [i for i, kind in enumerate(types) if kind == "hybrid"]
    window = imposed_window(window, "Zamba", hybrids)
    tied = config.flag("tie_word_embeddings", True)
    # transformers ties the blocks together with the head, or neither
    blocks = [_shared_block(config, width, eps, window) for _ in (hybrids[:1] if tied else hybrids)]
    options = {
        "num_heads": config.whole("n_mamba_heads", 2),
        "d_state": config.whole("mamba_d_state", 16),
        "d_conv": config.whole("mamba_d_conv", 4),
        "expand": config.whole("mamba_expand", 2),
        "dt_rank": whole_or_auto(config, "mamba_dt_rank"),
        "conv_bias": config.flag("mamba_conv_bias", True),
        "bias": config.flag("mamba_proj_bias", False),
    }

    def block(index: int) -> StreamingLayer:
        norm, mixer = RMSNorm(width, eps), MultiHeadMamba(width, **options)
        if index not in hybrids:
            return Block(norm, mixer)
        shared = blocks[hybrids.index(index) % len(blocks)]
        return ConcatBlock(
            Sequential({"shared": shared, "linear": Linear(width, width, bias=False)}), norm, mixer
        )

    stack = ConcatStack([block(index) for index in range(len(types))], RMSNorm(width, eps))
    layer = language_model(config.whole("vocab_size"), width, stack, tied)
    source = _mixers(gated(renaming(*hybrid_names(types, "shared_transf"))), options["num_heads"])
    return Plan(layer, source, ROTARY, window_imposed=window)


def _pattern(config: Keys) -> list[str]:
    """Layer types of a config that does not list them: the third is the first hybrid."""
    count = config.whole("num_hidden_layers")
    period, offset = config.whole("attn_layer_period", 6), config.whole("attn_layer_offset", 4, minimum=0)
    rest = ("hybrid" if i % period == offset else "linear_attention" for i in range(count - 3))
    return ["linear_attention", "linear_attention", "hybrid", *rest][:count]


def _shared_block(config: Keys, width: int, eps: float, window: int | None) -> Sequential:
    heads = config.whole("num_attention_heads", 16)
    config.require("attention_hidden_size", 2 * width, default=2 * width)
    head_dim = config.whole("attention_head_dim", 2 * width // heads)
    attention = SlidingWindowAttention(
        width,
        heads,
        window or 1,
        num_kv_heads=config.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        rope_base=None,
        input_dim=2 * width,
        scale=(head_dim / 2) ** -0.5,
    )
    mlp = GatedMLP(
        width, config.whole("intermediate_size"), activation=activation(config, "hidden_act", "gelu")
    )
    return Sequential(
        {"norm": RMSNorm(2 * width, eps), "attention": attention, "norm2": RMSNorm(width, eps), "mlp": mlp}
    )


def hybrid_names(types: list[str], shared: str) -> list[tuple[str, str]]:
    """Rules from the names of a ConcatStack's parameters to those of Zamba and Zamba2."""
    plain = "|".join(str(i) for i, kind in enumerate(types) if kind != "hybrid") or "none"
    return [
        ("embedding", "model.embed_tokens"),
        ("head", "lm_head"),
        (r"backbone\.norm_f", "model.final_layernorm"),
        (rf"backbone\.layers\.({plain})\.norm\.", r"model.layers.\1.input_layernorm."),
        (rf"backbone\.layers\.({plain})\.mixer", r"model.layers.\1.mamba"),
        (r"backbone\.layers\.(\d+)\.norm\.", r"model.layers.\1.mamba_decoder.input_layernorm."),
        (r"backbone\.layers\.(\d+)\.mixer", r"model.layers.\1.mamba_decoder.mamba"),
        (r"backbone\.layers\.(\d+)\.side\.linear", r"model.layers.\1.linear"),
        (r"backbone\.layers\.(\d+)\.side\.shared\.norm\.", rf"model.layers.\1.{shared}.input_layernorm."),
        (r"backbone\.layers\.(\d+)\.side\.shared\.norm2", rf"model.layers.\1.{shared}.pre_ff_layernorm"),
        (r"backbone\.layers\.(\d+)\.side\.shared\.attention", rf"model.layers.\1.{shared}.self_attn"),
        (r"backbone\.layers\.(\d+)\.side\.shared\.mlp", rf"model.layers.\1.{shared}.feed_forward"),
    ]


def _mixers(source: Sources, heads: int) -> Sources:
    """Each head's parameters are a slice; the rows of in_proj for x and z alternate."""

    def find(name: str) -> str | Source:
        head = re.fullmatch(r"(.*\.mixer)\.heads\.(\d+)\.(.*)", name)
        if head is not None:
            stacked = f"{source(head[1])}.{head[3].replace('_proj.', '_proj_')}"
            return Source((stacked,), entry=(int(head[2]), heads))
        if ".mixer.in_proj." in name:
            return Source((source(name),), _separate)
        return source(name)

    return find


def _separate(value: Tensor) -> Tensor:
    """Rows x0, z0, x1, z1, ... -> x0, x1, ..., z0, z1, ..."""
    return torch.cat([value[0::2], value[1::2]])


FAMILY = Family("zamba", ("zamba",), build)
