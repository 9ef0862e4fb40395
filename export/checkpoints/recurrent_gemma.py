"""RecurrentGemma (Botev et al. 2024), Griffin's language model: RG-LRU blocks and local attention.

model.embed_tokens.weight                                  times sqrt(width) on the way in; tied
model.layers.{i}.temporal_pre_norm.weight                  norms hold their weights less one
model.layers.{i}.temporal_block.linear_{x,y,out}.*, .conv_1d.*, .rg_lru.*
model.layers.{i}.temporal_block.{q,k,v,o}_proj.*           in an attention layer
model.layers.{i}.channel_pre_norm.weight
model.layers.{i}.mlp_block.{gate,up,down}_proj.*
model.final_norm.weight
"""

from __future__ import annotations

import re

import torch

from streamssm.export.checkpoints.family import Family, Keys, Plan, Source, renaming
from streamssm.export.checkpoints.hybrids import ROTARY, Sources, activation, gated, rope
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.layers import (
    Block,
    GatedMLP,
    RecurrentBlock,
    RMSNorm,
    Sequential,
    SlidingWindowAttention,
    SoftCap,
    Stack,
    StreamingLayer,
)

TYPES = ("recurrent", "attention")


def build(config: Keys, window: int | None) -> Plan:
    """The model; its attention has a window of its own, which ``window`` may narrow."""
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-6, minimum=0)
    function = activation(config, "hidden_activation", "gelu_pytorch_tanh")
    own = config.whole("attention_window_size", 2048)
    narrowed = window is not None and window < own
    count, types = config.whole("num_hidden_layers"), config.texts("block_types", (*TYPES[:1] * 2, TYPES[1]))
    for kind in types or ("none",):
        if kind not in TYPES:
            raise config.refusal(
                "block_types", kind, f"is no block that is known; those are {', '.join(TYPES)}"
            )

    def block(layer: int) -> Block:
        if types[layer % len(types)] == "attention":
            mixer = _attention(config, width, window if narrowed else own)
        else:
            mixer = _recurrent(config, width, function)
        # intermediate_size counts both halves
        hidden = config.whole("intermediate_size") // 2
        mlp = GatedMLP(width, hidden, bias=True, activation=function)
        return Block(RMSNorm(width, eps), mixer, RMSNorm(width, eps), mlp)

    stack = Stack([block(layer) for layer in range(count)], RMSNorm(width, eps))
    # the factor of the published model is rounded to 16 bits
    scale = torch.tensor(width**0.5, dtype=torch.bfloat16, device="cpu").item()
    tied = config.flag("tie_word_embeddings", True)
    model = language_model(config.whole("vocab_size"), width, stack, tied, embedding_scale=scale)
    cap = SoftCap(config.number("logits_soft_cap", 30.0))
    layer = Sequential(dict(model.layers) | {"soft_cap": cap})
    return Plan(layer, _sources(), ROTARY, window_imposed=window if narrowed else None)


def _attention(config: Keys, width: int, window: int) -> StreamingLayer:
    heads = config.whole("num_attention_heads", 10)
    base, part = rope(config)
    head_dim = width // heads
    return SlidingWindowAttention(
        width,
        heads,
        window,
        num_kv_heads=config.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        rope_base=base,
        rotary_dim=int(head_dim * (0.5 if part is None else part)),
        bias=config.flag("attention_bias", False),
        out_bias=True,
    )


def _recurrent(config: Keys, width: int, function: str) -> StreamingLayer:
    return RecurrentBlock(
        width,
        width=config.whole("lru_width", width),
        blocks=config.whole("num_attention_heads", 10),
        d_conv=config.whole("conv1d_width", 4),
        activation=function,
    )


def _sources() -> Sources:
    rename = gated(
        renaming(
            ("embedding", "model.embed_tokens"),
            ("head", "lm_head"),
            (r"backbone\.norm_f", "model.final_norm"),
            ("backbone", "model"),
            (r"norm\.", "temporal_pre_norm."),
            ("norm2", "channel_pre_norm"),
            (r"mixer\.conv1d", "temporal_block.conv_1d"),
            ("mixer", "temporal_block"),
            ("mlp", "mlp_block"),
        )
    )

    def find(name: str) -> str | Source:
        found = rename(name)
        if re.search(r"norm(2|_f)?\.weight$", name) and isinstance(found, str):
            return Source((found,), lambda weight: weight.float() + 1)
        return found

    return find


FAMILY = Family("recurrent_gemma", ("recurrent_gemma",), build)
