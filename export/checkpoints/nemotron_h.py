"""Nemotron-H (NVIDIA 2025): every layer is one thing: Mamba-2, attention without positions, an MLP, or
a mixture of experts beside an MLP that all items share.

    backbone.embeddings.weight
    backbone.layers.{i}.norm.weight
    backbone.layers.{i}.mixer.*                                   one of the four
    backbone.layers.{i}.mixer.experts.{e}.{up|down}_proj.weight   and .gate.*, .shared_experts.*
    backbone.norm_f.weight
    lm_head.weight                                                never tied

``mtp.*`` predicts further tokens and is not part of the model.
"""

from __future__ import annotations

import math

from streamssm.export.checkpoints.family import Family, Keys, Plan, renaming
from streamssm.export.checkpoints.hybrids import activation, imposed_window, layer_types
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.layers import (
    MLP,
    Block,
    Mamba2,
    Parallel,
    RMSNorm,
    SigmoidMixture,
    SlidingWindowAttention,
    Stack,
    StreamingLayer,
)

TYPES = ("linear_attention", "full_attention", "mlp", "moe")
_LETTERS = dict(zip("M*-E", TYPES, strict=True))
_IGNORED = {r"mtp\..*": "predicts further tokens, which streams have no use for"}
NAMES = (
    ("embedding", "backbone.embeddings"),
    ("head", "lm_head"),
    (r"mixer\.layers\.shared", "mixer.shared_experts"),
    (r"mixer\.layers\.experts", "mixer"),
    (r"mixer\.router", "mixer.gate"),
    (r"mixer\.choice_bias", "mixer.gate.e_score_correction_bias"),
    (r"mixer\.into", "mixer.fc1_latent_proj"),
    (r"mixer\.back", "mixer.fc2_latent_proj"),
    (r"fc1\.", "up_proj."),
    (r"fc2\.", "down_proj."),
)


def build(config: Keys, window: int | None) -> Plan:
    """The model from its config."""
    width, eps = config.whole("hidden_size"), config.number("layer_norm_epsilon", 1e-5, minimum=0)
    types = layer_types(config, "layers_block_type", TYPES, default=_pattern(config))
    # transformers does not read the config's own sliding_window: its attention sees everything
    attended = [i for i, kind in enumerate(types) if kind == "full_attention"]
    window = imposed_window(window, "Nemotron-H", attended)

    def mixer(kind: str) -> StreamingLayer:
        if kind == "linear_attention":
            return _mamba(config, width, eps)
        if kind == "full_attention":
            return _attention(config, width, window)
        return _mlp(config, width, "intermediate_size", 21504) if kind == "mlp" else _experts(config, width)

    stack = Stack([Block(RMSNorm(width, eps), mixer(kind)) for kind in types], RMSNorm(width, eps))
    layer = language_model(config.whole("vocab_size"), width, stack, tied=False)
    spellings = {r"^model\.": "backbone."}
    return Plan(layer, renaming(*NAMES), _IGNORED, spellings, window_imposed=window)


def _pattern(config: Keys) -> list[str]:
    """Layer types of a config that has letters for them, such as M-M*-; none if it has no such key."""
    if "hybrid_override_pattern" not in config:
        return []
    letters = config.text("hybrid_override_pattern")
    for letter in letters:
        if letter not in _LETTERS:
            raise config.refusal("hybrid_override_pattern", letter, f"is none of {''.join(_LETTERS)}")
    return [_LETTERS[letter] for letter in letters]


def _mamba(config: Keys, width: int, eps: float) -> Mamba2:
    config.require("mamba_hidden_act", "silu", "swish", default="silu")
    heads, headdim = config.whole("mamba_num_heads", 128), config.whole("mamba_head_dim", 64)
    groups, taps = config.whole("n_groups", 8), config.whole("conv_kernel", 4)
    return Mamba2(
        width,
        d_inner=heads * headdim,
        headdim=headdim,
        d_state=config.whole("ssm_state_size", 128),
        ngroups=config.whole("mamba_n_groups", groups),
        d_conv=config.whole("mamba_d_conv", taps),
        bias=config.flag("use_bias", False),
        conv_bias=config.flag("mamba_conv_bias", config.flag("use_conv_bias", True)),
        # transformers does not read time_step_limit either
        dt_limit=(
            config.number("mamba_dt_min", config.number("time_step_min", 0.001, minimum=0), minimum=0),
            math.inf,
        ),
        eps=eps,
    )


def _attention(config: Keys, width: int, window: int | None) -> SlidingWindowAttention:
    heads = config.whole("num_attention_heads", 32)
    return SlidingWindowAttention(
        width,
        heads,
        window or 1,
        num_kv_heads=config.whole("num_key_value_heads", 8),
        head_dim=config.whole("head_dim", 128),
        rope_base=None,
    )


def _mlp(config: Keys, width: int, key: str, default: int) -> MLP:
    hidden, bias = config.whole(key, default), config.flag("mlp_bias", False)
    return MLP(width, hidden, bias, activation(config, "mlp_hidden_act", "relu2"))


def _experts(config: Keys, width: int) -> Parallel:
    experts = SigmoidMixture(
        width,
        config.whole("moe_intermediate_size", 7688),
        config.whole("n_routed_experts", 8),
        config.whole("num_experts_per_tok", 2),
        groups=config.whole("n_group", 1),
        kept_groups=config.whole("topk_group", 1),
        normalise=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 1.0),
        activation=activation(config, "mlp_hidden_act", "relu2"),
        gated=False,
        latent=config.whole("moe_latent_size") if "moe_latent_size" in config else None,
        bias=config.flag("mlp_bias", False),
    )
    shared = _mlp(config, width, "moe_shared_expert_intermediate_size", 7688)
    return Parallel({"experts": experts, "shared": shared})


FAMILY = Family("nemotron_h", ("nemotron_h",), build)
