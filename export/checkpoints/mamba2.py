"""Mamba-2 (Dao & Gu 2024): checkpoints of transformers, of state-spaces, and Codestral's.

    backbone.embeddings.weight               state-spaces and Codestral: backbone.embedding.weight
    backbone.layers.{i}.norm.weight
    backbone.layers.{i}.mixer.*              as in streamssm.export.layers.Mamba2
    backbone.norm_f.weight
    lm_head.weight

Codestral's original files are params.json, with keys of Mistral, and consolidated.safetensors, with
the names of state-spaces behind ``model.``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from streamssm.export.checkpoints.family import Family, Keys, Plan, no_window, renaming
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.checkpoints.state_spaces import INITIAL_KEYS, build_model
from streamssm.export.layers import Block, Mamba2, RMSNorm, Stack

_SPELLINGS = {r"^model\.(?=backbone|lm_head)": "", r"^backbone\.embedding\.": "backbone.embeddings."}


def build(config: Keys, window: int | None) -> Plan:
    """The model from any of the three forms of config."""
    if "d_model" in config:
        options = mixer_options(config.table("ssm_cfg"))
        return build_model(config, window, "Mamba-2", lambda width: Mamba2(width, **options))
    no_window(window, "Mamba-2")
    return _mistral(config) if "dim" in config else _transformers(config)


def _transformers(config: Keys) -> Plan:
    config.require("hidden_act", "silu", "swish", default="silu")
    width, eps = config.whole("hidden_size"), config.number("layer_norm_epsilon", 1e-5, minimum=0)
    heads, head_dim = config.whole("num_heads"), config.whole("head_dim")
    inner = int(config.number("expand", 2) * width)
    if heads * head_dim != inner:
        raise config.refusal("num_heads", heads, f"times head_dim = {head_dim} must be {inner}")
    options = {
        "d_inner": inner,
        "headdim": head_dim,
        "d_state": config.whole("state_size", 128),
        "d_conv": config.whole("conv_kernel", 4),
        "ngroups": config.whole("n_groups", 8),
        "dt_limit": config.numbers("time_step_limit", (0.0, math.inf), count=2),
        "bias": config.flag("use_bias", False),
        "conv_bias": config.flag("use_conv_bias", True),
        "eps": eps,
    }
    blocks = [
        Block(RMSNorm(width, eps), Mamba2(width, **options)) for _ in range(config.whole("num_hidden_layers"))
    ]
    stack, tied = Stack(blocks, RMSNorm(width, eps)), config.flag("tie_word_embeddings", False)
    layer = language_model(config.whole("vocab_size"), width, stack, tied)
    return Plan(
        layer, renaming(("embedding", "backbone.embeddings"), ("head", "lm_head")), spellings=_SPELLINGS
    )


def mixer_options(config: Keys) -> dict[str, Any]:
    """The ``ssm_cfg`` of mamba_ssm."""
    sizes = ("d_state", "d_conv", "expand", "headdim", "ngroups", "dt_limit")
    flags = ("D_has_hdim", "rmsnorm", "norm_before_gate", "bias", "conv_bias")
    config.only(*sizes, *flags, *INITIAL_KEYS)
    return {
        "d_state": config.whole("d_state", 128),
        "d_conv": config.whole("d_conv", 4),
        "expand": config.whole("expand", 2),
        "headdim": config.whole("headdim", 64),
        "ngroups": config.whole("ngroups", 1),
        "dt_limit": config.numbers("dt_limit", (0.0, math.inf), count=2),
        "d_has_hdim": config.flag("D_has_hdim", False),
        "rmsnorm": config.flag("rmsnorm", True),
        "norm_before_gate": config.flag("norm_before_gate", False),
        "bias": config.flag("bias", False),
        "conv_bias": config.flag("conv_bias", True),
    }


def _mistral(config: Keys) -> Plan:
    """Mistral's keys for a config of state-spaces; everything else is as mamba_ssm has it."""
    keys = {"d_model": "dim", "n_layer": "n_layers", "vocab_size": "vocab_size"}
    values: dict[str, Any] = {own: config.whole(theirs) for own, theirs in keys.items()}
    values["ssm_cfg"] = {"layer": "Mamba2", "ngroups": config.whole("n_groups")}
    values["rms_norm"] = config.flag("rms_norm")
    values["pad_vocab_size_multiple"] = config.whole("pad_vocab_size_multiple")
    values["tie_embeddings"] = config.flag("tie_embeddings")
    options = mixer_options(Keys(values["ssm_cfg"], config.where))
    plan = build_model(Keys(values, config.where), None, "Mamba-2", lambda width: Mamba2(width, **options))
    return Plan(plan.layer, plan.source, spellings={r"^model\.": ""})


def recognises(config: Mapping[str, Any]) -> bool:
    """A state-spaces config of Mamba-2, or Codestral's params.json, which calls itself "mamba"."""
    if "dim" in config:
        return config.get("model_type") == "mamba"
    options = config.get("ssm_cfg")
    return "d_model" in config and isinstance(options, Mapping) and options.get("layer") == "Mamba2"


FAMILY = Family("mamba2", ("mamba2",), build, recognises)
