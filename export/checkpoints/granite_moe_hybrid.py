"""GraniteMoeHybrid (IBM Granite 4, 2025): Mamba-2 or attention, then a mixture of experts beside a
gated MLP that all items share.

    model.embed_tokens.weight
    model.layers.{i}.input_layernorm.weight
    model.layers.{i}.mamba.* or .self_attn.*
    model.layers.{i}.post_attention_layernorm.weight
    model.layers.{i}.block_sparse_moe.router.layer.weight
    model.layers.{i}.block_sparse_moe.{input|output}_linear.weight       all experts, [E, out, in]
    model.layers.{i}.shared_mlp.{input|output}_linear.weight             input: rows of gate, then of up
    model.norm.weight
    lm_head.weight

The multiplier of the residuals and the divisor of the logits go into the weights, in float32.
"""

from __future__ import annotations

import re

from streamssm.export.checkpoints.family import Family, Keys, Plan, Source, renaming
from streamssm.export.checkpoints.hybrids import (
    ROTARY,
    Sources,
    activation,
    attention,
    block_names,
    imposed_window,
    layer_types,
    mamba2_options,
    rope,
    scaled,
    swap_halves,
)
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.layers import (
    Block,
    GatedMLP,
    Mamba2,
    MixtureOfExperts,
    Parallel,
    RMSNorm,
    Stack,
    StreamingLayer,
)

TYPES = ("linear_attention", "full_attention")


def build(config: Keys, window: int | None) -> Plan:
    """The model from its config."""
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-6, minimum=0)
    every = ["linear_attention"] * config.whole("num_hidden_layers")
    types = layer_types(config, "layer_types", TYPES, default=every)
    attended = [i for i, kind in enumerate(types) if kind == "full_attention"]
    if len(attended) < len(types):  # the convolution in front of the scan has it too
        config.require("hidden_act", "silu", "swish", default="silu")
    window = imposed_window(window, "GraniteMoeHybrid", attended)
    experts = config.whole("num_local_experts", 8, minimum=0)
    inner = int(config.number("mamba_expand", 2) * width)
    base = rope(config)[0] if config.word("position_embedding_type") == "rope" else None
    multiplier = config.number("attention_multiplier", 1.0)

    def block(kind: str) -> Block:
        if kind == "full_attention":
            mixer: StreamingLayer = attention(config, width, window, rope_base=base, scale=multiplier)
        else:
            mixer = Mamba2(width, eps=eps, **mamba2_options(config, inner))
        return Block(RMSNorm(width, eps), mixer, RMSNorm(width, eps), _feed_forward(config, width, experts))

    stack = Stack([block(kind) for kind in types], RMSNorm(width, eps))
    tied, scale = config.flag("tie_word_embeddings", False), config.number("embedding_multiplier", 1.0)
    layer = language_model(config.whole("vocab_size"), width, stack, tied, embedding_scale=scale)
    return Plan(layer, _multiplied(_sources(attended, experts), config), ROTARY, window_imposed=window)


def _feed_forward(config: Keys, width: int, experts: int) -> StreamingLayer:
    function = activation(config, "hidden_act", "silu")
    shared = GatedMLP(width, config.whole("shared_intermediate_size", 1024), activation=function)
    if not experts:
        return Parallel({"shared": shared})
    mixture = MixtureOfExperts(
        width,
        config.whole("intermediate_size"),
        experts,
        config.whole("num_experts_per_tok", 2),
        renormalise=True,
        activation=function,
    )
    return Parallel({"experts": mixture, "shared": shared})


def _sources(attended: list[int], experts: int) -> Sources:
    names = renaming(
        *block_names(attended, "norm", "post_attention_layernorm"),
        (r"mlp\.layers\.shared", "shared_mlp"),
        (r"mlp\.layers\.experts", "block_sparse_moe"),
        (r"block_sparse_moe\.router", "block_sparse_moe.router.layer"),
        (r"fc1\.", "input_linear."),
        (r"fc2\.", "output_linear."),
    )

    def find(name: str) -> str | Source:
        tensor, entry = names(name), None
        if expert := re.fullmatch(r"(.*block_sparse_moe\.)experts\.(\d+)\.(.*)", tensor):
            tensor, entry = expert[1] + expert[3], (int(expert[2]), experts)
        if name.endswith("fc1.weight"):
            return Source((tensor,), swap_halves, entry)
        return Source((tensor,), entry=entry)

    return find


def _multiplied(source: Sources, config: Keys) -> Sources:
    residual, logits = config.number("residual_multiplier", 1.0), config.number("logits_scaling", 1.0)
    if logits == 0:
        raise config.refusal("logits_scaling", logits, "divides the logits and must not be zero")

    def find(name: str) -> str | Source:
        if re.fullmatch(r".*\.(out_proj|o_proj|fc2)\.(weight|bias)", name):
            return scaled(source(name), (-1, residual))
        return scaled(source(name), (-1, 1 / logits)) if name == "backbone.norm_f.weight" else source(name)

    return find


FAMILY = Family("granite_moe_hybrid", ("granitemoehybrid",), build)
