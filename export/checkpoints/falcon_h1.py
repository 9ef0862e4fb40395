"""Falcon-H1 (TII 2025): in every layer Mamba-2 and attention side by side, then a gated MLP.

    model.embed_tokens.weight
    model.layers.{i}.input_layernorm.weight
    model.layers.{i}.mamba.*, .self_attn.*
    model.layers.{i}.pre_ff_layernorm.weight
    model.layers.{i}.feed_forward.{gate|up|down}_proj.weight
    model.final_layernorm.weight
    lm_head.weight

Its many multipliers are all linear: they go into the weights, in float32, and cost nothing. Only that
of the embedding stays, because the head may share the table.
"""

from __future__ import annotations

import re

from streamssm.export.checkpoints.family import Family, Keys, Plan, Source, renaming
from streamssm.export.checkpoints.hybrids import (
    ROTARY,
    Sources,
    attention,
    block_names,
    gated,
    imposed_window,
    mamba2_options,
    rope,
    scaled,
)
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.layers import Block, GatedMLP, Mamba2, Parallel, RMSNorm, Stack

NAMES = (
    (r"mixer\.layers\.mamba", "mamba"),
    (r"mixer\.layers\.attention", "self_attn"),
    ("mlp", "feed_forward"),
    *block_names(),
)


def build(config: Keys, window: int | None) -> Plan:
    """The model from its config."""
    config.require("hidden_act", "silu", "swish", default="silu")
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-5, minimum=0)
    count, hidden = config.whole("num_hidden_layers"), config.whole("intermediate_size")
    window = imposed_window(window, "Falcon-H1", range(count))
    inner = config.whole("mamba_d_ssm", int(config.number("mamba_expand", 2) * width))
    mamba = mamba2_options(config, inner) | {
        "eps": eps,
        "out_bias": config.flag("projectors_bias", False),
        "rmsnorm": config.flag("mamba_rms_norm", False),
        "norm_before_gate": config.flag("mamba_norm_before_gate", True),
    }

    def block() -> Block:
        attended = attention(config, width, window, rope_base=rope(config)[0])
        mixer = Parallel({"mamba": Mamba2(width, **mamba), "attention": attended})
        mlp = GatedMLP(width, hidden, config.flag("mlp_bias", False))
        return Block(RMSNorm(width, eps), mixer, RMSNorm(width, eps), mlp)

    stack = Stack([block() for _ in range(count)], RMSNorm(width, eps))
    tied, scale = config.flag("tie_word_embeddings", False), config.number("embedding_multiplier", 1.0)
    layer = language_model(config.whole("vocab_size"), width, stack, tied, embedding_scale=scale)
    source = _multiplied(gated(renaming(*NAMES)), config, mamba)
    return Plan(layer, source, ROTARY, window_imposed=window)


def _multiplied(source: Sources, config: Keys, mamba: dict) -> Sources:
    """``source`` with the multipliers in the weights: (parameter, rows of each factor)."""
    inner, states = mamba["d_inner"], mamba["ngroups"] * mamba["d_state"]
    rows = (inner, inner, states, states, inner // mamba["headdim"])
    ssm = config.numbers("ssm_multipliers", (1.0,) * 5, count=5)
    ssm_in, ssm_out = config.number("ssm_in_multiplier", 1.0), config.number("ssm_out_multiplier", 1.0)
    seen, attended = (config.number(f"attention_{end}_multiplier", 1.0) for end in ("in", "out"))
    key = config.number("key_multiplier", 1.0)
    gate, down = config.numbers("mlp_multipliers", (1.0, 1.0), count=2)
    hidden = config.whole("intermediate_size")
    rules = {
        r".*\.mamba\.in_proj\.weight": [(n, ssm_in * factor) for n, factor in zip(rows, ssm, strict=True)],
        r".*\.mamba\.in_proj\.bias": list(zip(rows, ssm, strict=True)),
        r".*\.mamba\.out_proj\..*": [(-1, ssm_out)],
        r".*\.attention\.[qv]_proj\.weight": [(-1, seen)],
        r".*\.attention\.k_proj\.weight": [(-1, seen * key)],
        r".*\.attention\.k_proj\.bias": [(-1, key)],
        r".*\.attention\.o_proj\..*": [(-1, attended)],
        r".*\.mlp\.fc1\..*": [(hidden, 1.0), (hidden, gate)],
        r".*\.mlp\.fc2\..*": [(-1, down)],
        r"backbone\.norm_f\.weight": [(-1, config.number("lm_head_multiplier", 1.0))],
    }

    def find(name: str) -> str | Source:
        for pattern, factors in rules.items():
            if re.fullmatch(pattern, name):
                return scaled(source(name), *factors)
        return source(name)

    return find


FAMILY = Family("falcon_h1", ("falcon_h1",), build)
