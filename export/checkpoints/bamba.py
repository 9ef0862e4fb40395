"""Bamba (IBM, Princeton, UIUC 2024): Mamba-2 and, in a few layers, attention with rotary positions;
a gated MLP in every layer.

    model.embed_tokens.weight
    model.layers.{i}.input_layernorm.weight
    model.layers.{i}.mamba.* or .self_attn.*
    model.layers.{i}.pre_ff_layernorm.weight
    model.layers.{i}.feed_forward.{gate|up|down}_proj.weight
    model.final_layernorm.weight
    lm_head.weight
"""

from __future__ import annotations

from streamssm.export.checkpoints.family import Family, Keys, Plan, renaming
from streamssm.export.checkpoints.hybrids import (
    ROTARY,
    attention,
    block_names,
    gated,
    imposed_window,
    mamba2_options,
    rope,
)
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.layers import Block, GatedMLP, Mamba2, RMSNorm, SlidingWindowAttention, Stack


def build(config: Keys, window: int | None) -> Plan:
    """The model from its config."""
    config.require("hidden_act", "silu", "swish", default="silu")
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-5, minimum=0)
    count = config.whole("num_hidden_layers")
    attended = config.wholes("attn_layer_indices", ())
    for index in attended:
        if index >= count:
            raise config.refusal("attn_layer_indices", index, f"is beyond the {count} layers")
    window = imposed_window(window, "Bamba", attended)
    hidden, mlp_bias = config.whole("intermediate_size"), config.flag("mlp_bias", False)
    inner = int(config.number("mamba_expand", 2) * width)
    options = mamba2_options(config, inner) | {"eps": eps}

    def block(index: int) -> Block:
        mixer = _attention(config, width, window) if index in attended else Mamba2(width, **options)
        return Block(RMSNorm(width, eps), mixer, RMSNorm(width, eps), GatedMLP(width, hidden, mlp_bias))

    stack = Stack([block(index) for index in range(count)], RMSNorm(width, eps))
    tied = config.flag("tie_word_embeddings", False)
    layer = language_model(config.whole("vocab_size"), width, stack, tied)
    names = renaming(*block_names(attended), ("mlp", "feed_forward"))
    return Plan(layer, gated(names), ROTARY, window_imposed=window)


def _attention(config: Keys, width: int, window: int | None) -> SlidingWindowAttention:
    base, part = rope(config)
    head_dim = config.whole("head_dim", width // config.whole("num_attention_heads", 32))
    rotary_dim = int(head_dim * (0.5 if part is None else part))
    return attention(config, width, window, rope_base=base, rotary_dim=rotary_dim)


FAMILY = Family("bamba", ("bamba",), build)
