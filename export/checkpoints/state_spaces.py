"""The form of mamba_ssm's own checkpoints, shared by Mamba and Mamba-2.

backbone.embedding.weight
backbone.layers.{i}.norm.weight, .mixer.*
backbone.layers.{i}.norm2.weight, .mlp.fc1.weight, .mlp.fc2.weight      with d_intermediate
backbone.layers.{i}.mixer.{in_proj,conv1d,out_proj}.*                   attention, in attn_layer_idx
backbone.norm_f.weight
lm_head.weight                                                          stored even where it is tied
"""

from __future__ import annotations

from collections.abc import Callable

from streamssm.export.checkpoints.family import Keys, Plan, no_window, renaming, required_window
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.layers import (
    Block,
    ConvAttention,
    GatedMLP,
    LayerNorm,
    RMSNorm,
    Stack,
    StreamingLayer,
)

_KEYS = (
    *("d_model", "n_layer", "d_intermediate", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg"),
    *("rms_norm", "residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings"),
)
_ATTENTION_KEYS = (
    *("num_heads", "num_heads_kv", "head_dim", "mlp_dim", "qkv_proj_bias", "out_proj_bias", "softmax_scale"),
    *("causal", "d_conv", "rotary_emb_dim", "rotary_emb_base", "rotary_emb_interleaved"),
)
#: keys of ``ssm_cfg`` that say how a mixer was initialised and which of its kernels ran
INITIAL_KEYS = (
    *("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init"),
    *("use_fast_path", "chunk_size", "use_mem_eff_path", "layer"),
)


def build_model(config: Keys, window: int | None, name: str, mixer: Callable[[int], StreamingLayer]) -> Plan:
    """A ``mamba_ssm.MambaLMHeadModel`` whose blocks have ``mixer(width)``; ``name`` is for errors.

    Raises:
        ExportError: the config is not one, or has attention layers and there is no window.
    """
    config.only(*_KEYS)
    width, count = config.whole("d_model"), config.whole("n_layer")
    attention = set(config.wholes("attn_layer_idx", ()))
    if attention - set(range(count)):
        raise config.refusal("attn_layer_idx", sorted(attention), f"names layers beyond n_layer = {count}")
    if attention:
        window = required_window(window, sorted(attention))
    else:
        no_window(window, name)
    norm = RMSNorm if config.flag("rms_norm", True) else LayerNorm

    def block(layer: int) -> Block:
        mix = _attention(config.table("attn_cfg"), width, window) if layer in attention else mixer(width)
        hidden = config.whole("d_intermediate", 0, minimum=0)
        if not hidden:
            return Block(norm(width), mix)
        # mamba_ssm rounds the hidden width up to a multiple of 128
        return Block(norm(width), mix, norm(width), GatedMLP(width, -(-hidden // 128) * 128))

    multiple = config.whole("pad_vocab_size_multiple", 8)
    vocabulary = -(-config.whole("vocab_size") // multiple) * multiple
    stack = Stack([block(layer) for layer in range(count)], norm(width))
    layer = language_model(vocabulary, width, stack, config.flag("tie_embeddings", True))
    source = renaming(("embedding", "backbone.embedding"), ("head", "lm_head"))
    ignored = {r".*rotary_emb\.inv_freq": "computed from the config"}
    return Plan(layer, source, ignored, window_imposed=window)


def _attention(config: Keys, width: int, window: int | None) -> StreamingLayer:
    """The ``attn_cfg`` of mamba_ssm."""
    config.only(*_ATTENTION_KEYS)
    config.require("causal", True)
    config.require("rotary_emb_interleaved", False, default=False)
    heads = config.whole("num_heads")
    return ConvAttention(
        width,
        heads,
        window or 1,
        num_kv_heads=config.whole("num_heads_kv", heads),
        head_dim=config.whole("head_dim") if "head_dim" in config else None,
        d_conv=config.whole("d_conv", 0, minimum=0),
        rotary_dim=config.whole("rotary_emb_dim", 0, minimum=0),
        rope_base=config.number("rotary_emb_base", 10000.0),
        # rounded up to a multiple of 256; both halves of the gated block are counted
        hidden=-(-config.whole("mlp_dim", 0, minimum=0) // 256) * 128,
        bias=config.flag("qkv_proj_bias", True),
        out_bias=config.flag("out_proj_bias", True),
        scale=config.number("softmax_scale") if "softmax_scale" in config else None,
    )
