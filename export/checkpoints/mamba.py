"""Mamba (Gu & Dao 2023): checkpoints of transformers and of state-spaces.

backbone.embeddings.weight               state-spaces: backbone.embedding.weight
backbone.layers.{i}.norm.weight
backbone.layers.{i}.mixer.*              as in streamssm.export.layers.Mamba
backbone.norm_f.weight
lm_head.weight                           tied to the embedding as a rule
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamssm.export.checkpoints.family import Family, Keys, Plan, no_window, renaming
from streamssm.export.checkpoints.parts import language_model, whole_or_auto
from streamssm.export.checkpoints.state_spaces import INITIAL_KEYS, build_model
from streamssm.export.layers import Block, Mamba, RMSNorm, Stack


def build(config: Keys, window: int | None) -> Plan:
    """The model from either form of config."""
    if "d_model" in config:
        options = mixer_options(config.table("ssm_cfg", {}))
        return build_model(config, window, "Mamba", lambda width: Mamba(width, **options))
    no_window(window, "Mamba")
    return transformers_model(config)


def transformers_model(config: Keys, **mixer: Any) -> Plan:
    """A config of transformers; ``mixer`` is what the config does not say of the mixers."""
    config.require("hidden_act", "silu", "swish", default="silu")
    width, eps = config.whole("hidden_size"), config.number("layer_norm_epsilon", 1e-5, minimum=0)
    options = {
        "d_state": config.whole("state_size", 16),
        "d_conv": config.whole("conv_kernel", 4),
        "d_inner": config.whole("intermediate_size", int(config.number("expand", 2) * width)),
        "dt_rank": whole_or_auto(config, "time_step_rank"),
        "conv_bias": config.flag("use_conv_bias", True),
        "bias": config.flag("use_bias", False),
    } | mixer
    blocks = [
        Block(RMSNorm(width, eps), Mamba(width, **options)) for _ in range(config.whole("num_hidden_layers"))
    ]
    stack, tied = Stack(blocks, RMSNorm(width, eps)), config.flag("tie_word_embeddings", True)
    layer = language_model(config.whole("vocab_size"), width, stack, tied)
    source = renaming(("embedding", "backbone.embeddings"), ("head", "lm_head"))
    return Plan(layer, source, spellings={r"^backbone\.embedding\.": "backbone.embeddings."})


def mixer_options(config: Keys) -> dict[str, Any]:
    """The ``ssm_cfg`` of mamba_ssm."""
    config.only("d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias", *INITIAL_KEYS)
    return {
        "d_state": config.whole("d_state", 16),
        "d_conv": config.whole("d_conv", 4),
        "expand": config.whole("expand", 2),
        "dt_rank": whole_or_auto(config, "dt_rank"),
        "conv_bias": config.flag("conv_bias", True),
        "bias": config.flag("bias", False),
    }


def recognises(config: Mapping[str, Any]) -> bool:
    """A state-spaces config, which does not say what it is, of the first Mamba."""
    options = config.get("ssm_cfg") or {}
    return "d_model" in config and isinstance(options, Mapping) and options.get("layer", "Mamba1") == "Mamba1"


FAMILY = Family("mamba", ("mamba",), build, recognises)
