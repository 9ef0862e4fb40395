"""Jamba (Lieber et al. 2024): Mamba with norms inside the mixer, attention without positions in one
layer of some, and a mixture of experts in every other layer as a rule.

    model.embed_tokens.weight
    model.layers.{i}.input_layernorm.weight
    model.layers.{i}.mamba.* or .self_attn.{q,k,v,o}_proj.weight
    model.layers.{i}.pre_ff_layernorm.weight
    model.layers.{i}.feed_forward.{gate,up,down}_proj.weight, or .router.weight and
    model.layers.{i}.feed_forward.experts.{e}.{gate,up,down}_proj.weight
    model.final_layernorm.weight, lm_head.weight
"""

from __future__ import annotations

from streamssm.export.checkpoints.family import Family, Keys, Plan, renaming
from streamssm.export.checkpoints.hybrids import gated, imposed_window
from streamssm.export.checkpoints.parts import language_model, whole_or_auto
from streamssm.export.layers import (
    Block,
    GatedMLP,
    Mamba,
    MixtureOfExperts,
    RMSNorm,
    SlidingWindowAttention,
    Stack,
    StreamingLayer,
)


def build(config: Keys, window: int | None) -> Plan:
    """The model; attention sees everything, and so needs a window."""
    config.require("hidden_act", "silu", "swish", default="silu")
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-6, minimum=0)
    attention = _periodic(config, "attn_layer_period", "attn_layer_offset", (8, 4))
    experts = _periodic(config, "expert_layer_period", "expert_layer_offset", (2, 1))
    window = imposed_window(window, "Jamba", attention)

    def block(layer: int) -> Block:
        mixer = _attention(config, width, window) if layer in attention else _mamba(config, width, eps)
        feed_forward = _feed_forward(config, width, layer in experts)
        return Block(RMSNorm(width, eps), mixer, RMSNorm(width, eps), feed_forward)

    stack = Stack([block(layer) for layer in range(config.whole("num_hidden_layers"))], RMSNorm(width, eps))
    tied = config.flag("tie_word_embeddings", False)
    layer = language_model(config.whole("vocab_size"), width, stack, tied)
    return Plan(layer, gated(renaming(*_names(attention))), window_imposed=window)


def _periodic(config: Keys, period: str, offset: str, default: tuple[int, int]) -> list[int]:
    """The layers at ``offset`` in every ``period``.

    Raises:
        ExportError: the offset is beyond the period.
    """
    every, first = config.whole(period, default[0]), config.whole(offset, default[1], minimum=0)
    if first >= every:
        raise config.refusal(offset, first, f"must be below {period} = {every}")
    return list(range(first, config.whole("num_hidden_layers"), every))


def _attention(config: Keys, width: int, window: int | None) -> StreamingLayer:
    heads = config.whole("num_attention_heads")
    kv_heads = config.whole("num_key_value_heads", heads)
    return SlidingWindowAttention(width, heads, window or 1, num_kv_heads=kv_heads, rope_base=None)


def _mamba(config: Keys, width: int, eps: float) -> StreamingLayer:
    return Mamba(
        width,
        d_state=config.whole("mamba_d_state", 16),
        d_conv=config.whole("mamba_d_conv", 4),
        expand=config.whole("mamba_expand", 2),
        dt_rank=whole_or_auto(config, "mamba_dt_rank"),
        conv_bias=config.flag("mamba_conv_bias", True),
        bias=config.flag("mamba_proj_bias", False),
        inner_norm=eps,
    )


def _feed_forward(config: Keys, width: int, sparse: bool) -> StreamingLayer:
    hidden, experts = config.whole("intermediate_size"), config.whole("num_experts", 16)
    if not sparse or experts == 1:
        return GatedMLP(width, hidden)
    return MixtureOfExperts(width, hidden, experts, config.whole("num_experts_per_tok", 2))


def _names(attention: list[int]) -> list[tuple[str, str]]:
    layers = "|".join(map(str, attention)) or "none"
    return [
        ("embedding", "model.embed_tokens"),
        ("head", "lm_head"),
        (r"backbone\.norm_f", "model.final_layernorm"),
        (rf"backbone\.layers\.({layers})\.mixer", r"model.layers.\1.self_attn"),
        ("backbone", "model"),
        (r"norm\.", "input_layernorm."),
        ("norm2", "pre_ff_layernorm"),
        ("mixer", "mamba"),
        ("mlp", "feed_forward"),
    ]


FAMILY = Family("jamba", ("jamba",), build)
