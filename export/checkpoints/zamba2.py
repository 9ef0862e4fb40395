"""Zamba2 (Glorioso et al. 2024): Mamba-2 layers and a few shared attention blocks, used in turn by
the "hybrid" layers; what is shared has low-rank adapters for each use.

    names as in Zamba, and in each shared block, at its first use only:
    shared_transformer.feed_forward.gate_up_proj.weight                    rows of gate, then of up
    shared_transformer.feed_forward.gate_up_proj_adapter_list.{n}.{0|1}    of the n-th hybrid layer
    shared_transformer.self_attn.linear_{q|k|v}_adapter_list.{n}.{0|1}     where attention has them
"""

from __future__ import annotations

import math
import re

from streamssm.export.checkpoints.family import Family, Keys, Plan, Source, renaming
from streamssm.export.checkpoints.hybrids import (
    ROTARY,
    Sources,
    activation,
    imposed_window,
    layer_types,
    rope,
    swap_halves,
)
from streamssm.export.checkpoints.parts import language_model
from streamssm.export.checkpoints.zamba import TYPES, hybrid_names
from streamssm.export.layers import (
    Block,
    ConcatBlock,
    ConcatStack,
    GatedMLP,
    Linear,
    Mamba2,
    RMSNorm,
    Sequential,
    SlidingWindowAttention,
    StreamingLayer,
    adapted,
)

ATTENTION = ("q_proj", "k_proj", "v_proj")
#: Parts of a use of a shared block, and their tensors behind "model.layers.". Copies of a block are looked
#: for at each use; the adapters of every use are at the block's first, under the number of the use.
_SHARED = {
    r"norm\.weight": "{layer}.shared_transformer.input_layernorm.weight",
    r"norm2\.weight": "{layer}.shared_transformer.pre_ff_layernorm.weight",
    r"attention\.([qkvo]_proj)\.(?:shared\.)?weight": r"{layer}.shared_transformer.self_attn.\1.weight",
    r"attention\.([qkv])_proj\.down\.weight": (
        r"{first}.shared_transformer.self_attn.linear_\1_adapter_list.{use}.0.weight"
    ),
    r"attention\.([qkv])_proj\.up\.weight": (
        r"{first}.shared_transformer.self_attn.linear_\1_adapter_list.{use}.1.weight"
    ),
    r"mlp\.fc1\.shared\.(.*)": r"{layer}.shared_transformer.feed_forward.gate_up_proj.\1",
    r"mlp\.fc1\.down\.weight": (
        "{first}.shared_transformer.feed_forward.gate_up_proj_adapter_list.{use}.0.weight"
    ),
    r"mlp\.fc1\.up\.weight": (
        "{first}.shared_transformer.feed_forward.gate_up_proj_adapter_list.{use}.1.weight"
    ),
    r"mlp\.fc2\.(.*)": r"{layer}.shared_transformer.feed_forward.down_proj.\1",
}
#: a block that is not shared still comes with the adapters of all the uses that it would have had
_OF_OTHER_USES = {r".*_adapter_list\.\d+\.[01]\.weight": "adapters of another layer's use of the block"}


def build(config: Keys, window: int | None) -> Plan:
    """The model from its config."""
    width, eps = config.whole("hidden_size"), config.number("rms_norm_eps", 1e-5, minimum=0)
    types = layer_types(config, "layers_block_type", TYPES)
    hybrids = [i for i, kind in enumerate(types) if kind == "hybrid"]
    window = imposed_window(window, "Zamba2", hybrids)
    tied = config.flag("tie_word_embeddings", True)
    # transformers ties the blocks together with the head, or neither
    count = min(config.whole("num_mem_blocks", 1), len(hybrids)) if tied else len(hybrids)
    shared = [_shared_block(config, width, eps, window) for _ in range(count)]
    options = _mixer_options(config, width)

    def block(index: int) -> StreamingLayer:
        norm, mixer = RMSNorm(width, eps), Mamba2(width, **options)
        if index not in hybrids:
            return Block(norm, mixer)
        use = _use(config, shared[hybrids.index(index) % count])
        return ConcatBlock(
            Sequential({"shared": use, "linear": Linear(width, width, bias=False)}), norm, mixer
        )

    stack = ConcatStack([block(index) for index in range(len(types))], RMSNorm(width, eps))
    layer = language_model(config.whole("vocab_size"), width, stack, tied)
    source = _shared_parts(renaming(*hybrid_names(types, "shared_transformer")), hybrids, count)
    ignored = ROTARY | ({} if tied else _OF_OTHER_USES)
    return Plan(layer, source, ignored, window_imposed=window)


def _mixer_options(config: Keys, width: int) -> dict[str, object]:
    inner, heads = int(config.number("mamba_expand", 2) * width), config.whole("n_mamba_heads", 8)
    if inner % heads:
        raise config.refusal("n_mamba_heads", heads, f"does not divide the {inner} channels of the mixer")
    return {
        "d_inner": inner,
        "headdim": inner // heads,
        "d_state": config.whole("mamba_d_state", 64),
        "d_conv": config.whole("mamba_d_conv", 4),
        "ngroups": config.whole("mamba_ngroups", 1),
        "bias": config.flag("add_bias_linear", False),
        # transformers reads neither use_conv_bias nor a time_step_limit here
        "dt_limit": (config.number("time_step_min", 0.001, minimum=0), math.inf),
    }


def _shared_block(config: Keys, width: int, eps: float, window: int | None) -> dict[str, StreamingLayer]:
    heads = config.whole("num_attention_heads", 32)
    head_dim = 2 * width // heads
    attention = SlidingWindowAttention(
        width,
        heads,
        window or 1,
        num_kv_heads=config.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        rope_base=rope(config)[0] if config.flag("use_mem_rope", False) else None,
        input_dim=2 * width,
        scale=(head_dim / 2) ** -0.5,
    )
    hidden, bias = config.whole("intermediate_size", 4 * width), config.flag("add_bias_linear", False)
    mlp = GatedMLP(width, hidden, bias, activation(config, "hidden_act", "gelu"))
    return {"norm": RMSNorm(2 * width, eps), "attention": attention, "norm2": RMSNorm(width, eps), "mlp": mlp}


def _use(config: Keys, shared: dict[str, StreamingLayer]) -> Sequential:
    """A shared block with the adapters of one of its uses."""
    rank = config.whole("adapter_rank", 128)
    own = {"mlp": adapted(shared["mlp"], ("fc1",), rank)}
    if config.flag("use_shared_attention_adapter", False):
        own["attention"] = adapted(shared["attention"], ATTENTION, rank)
    return Sequential(shared | own)


def _shared_parts(source: Sources, hybrids: list[int], blocks: int) -> Sources:
    """``source``, and the parts of each use of a shared block: :data:`_SHARED`."""

    def find(name: str) -> str | Source:
        place = re.fullmatch(r"backbone\.layers\.(\d+)\.side\.shared\.(.*)", name)
        if place is None:
            return source(name)
        layer = int(place[1])
        use = hybrids.index(layer)
        for pattern, tensor in _SHARED.items():
            if part := re.fullmatch(pattern, place[2]):
                found = part.expand(tensor).format(layer=layer, first=hybrids[use % blocks], use=use)
                swapped = re.match(r"mlp\.fc1\.(shared|up)", place[2])
                return Source((f"model.layers.{found}",), swap_halves) if swapped else f"model.layers.{found}"
        return source(name)

    return find


FAMILY = Family("zamba2", ("zamba2",), build)
