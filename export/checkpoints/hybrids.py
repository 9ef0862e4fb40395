"""What the families of Mamba-2 and attention share: config keys, and tensors that are put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamssm.export.checkpoints.family import REQUIRED, Keys, Source, no_window, required_window
from streamssm.export.layers import SlidingWindowAttention

#: parameter name -> tensor or tensors of the checkpoint
Sources = Callable[[str], str | Source]

#: names of activations in transformers, and ours
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}
#: names of layer types in earlier configs
_EARLIER = {"mamba": "linear_attention", "attention": "full_attention"}
#: buffers of earlier checkpoints, computed from the config
ROTARY = {r".*rotary_emb\.inv_freq": "computed from the config"}


# --- config -------------------------------------------------------------------------------


def activation(config: Keys, name: str, default: str) -> str:
    """An activation by the name it has in :data:`..layers.activation.ACTIVATIONS`."""
    return ACTIVATIONS[config.require(name, *ACTIVATIONS, default=default)]


def layer_types(config: Keys, name: str, types: Collection[str], default: Sequence[str] = ()) -> list[str]:
    """The list of layer types, each of them one of ``types``, under their present names.

    Raises:
        ExportError: the list is missing, names another type, or is not ``num_hidden_layers`` long.
    """
    found = [_EARLIER.get(kind, kind) for kind in config.texts(name, default or REQUIRED)]
    for kind in found:
        if kind not in types:
            raise config.refusal(name, kind, f"is no layer type that is known; those are {', '.join(types)}")
    count = config.whole("num_hidden_layers", len(found) or 1)
    if len(found) != count:
        raise config.refusal(name, f"{len(found)} layers", f"does not fit num_hidden_layers = {count}")
    return found


def imposed_window(window: int | None, family: str, layers: Sequence[int]) -> int | None:
    """The window for attention in ``layers``, which see everything in the checkpoint's own model.

    Raises:
        ExportError: there are such layers and no window was given, or the other way round.
    """
    if layers:
        return required_window(window, layers)
    no_window(window, family)
    return None


def rope(config: Keys) -> tuple[float, float | None]:
    """Base of the rotary frequencies, and the part of each head that rotates (None: not said).

    Raises:
        ExportError: the frequencies are scaled (llama3, yarn, ...), which is not implemented.
    """
    base = config.number("rope_theta", 10000.0, minimum=1)
    part = config.number("partial_rotary_factor") if "partial_rotary_factor" in config else None
    for name in ("rope_parameters", "rope_scaling"):
        if name not in config:
            continue
        table = config.table(name)
        for key in ("rope_type", "type"):
            table.require(key, "default", default="default")
        base = table.number("rope_theta", base, minimum=1)
        part = table.number("partial_rotary_factor") if "partial_rotary_factor" in table else part
    return base, part


def attention(config: Keys, width: int, window: int | None, **options: Any) -> SlidingWindowAttention:
    """Attention with the usual keys, whose heads are ``width`` together where ``head_dim`` is not said."""
    heads = config.whole("num_attention_heads", 32)
    return SlidingWindowAttention(
        width,
        heads,
        window or 1,
        num_kv_heads=config.whole("num_key_value_heads", heads),
        head_dim=config.whole("head_dim", width // heads),
        bias=config.flag("attention_bias", False),
        **options,
    )


def mamba2_options(config: Keys, inner: int) -> dict[str, Any]:
    """The arguments of :class:`..layers.Mamba2` from the keys ``mamba_*``, for D = ``inner``.

    Raises:
        ExportError: heads and their size do not make D.
    """
    heads = config.whole("mamba_n_heads", 128)
    auto = "mamba_d_head" not in config or config.word("mamba_d_head") == "auto"
    headdim = inner // heads if auto else config.whole("mamba_d_head")
    if heads * headdim != inner:
        raise config.refusal(
            "mamba_n_heads", heads, f"heads of {headdim} channels are not the {inner} channels"
        )
    return {
        "d_inner": inner,
        "headdim": headdim,
        "d_state": config.whole("mamba_d_state", 256),
        "d_conv": config.whole("mamba_d_conv", 4),
        "ngroups": config.whole("mamba_n_groups", 1),
        "conv_bias": config.flag("mamba_conv_bias", True),
        "bias": config.flag("mamba_proj_bias", False),
        "dt_limit": config.numbers("time_step_limit", (0.0, float("inf")), count=2),
    }


# --- tensors ------------------------------------------------------------------------------


def block_names(
    attended: Sequence[int] = (), norm_f: str = "final_layernorm", norm2: str = "pre_ff_layernorm"
) -> list[tuple[str, str]]:
    """Rules for :func:`.family.renaming`, from the names of a stack of blocks to those of transformers;
    the mixers of the layers ``attended`` are attention, the others Mamba."""
    layers = "|".join(map(str, attended)) or "none"
    return [
        ("embedding", "model.embed_tokens"),
        ("head", "lm_head"),
        (r"backbone\.norm_f", f"model.{norm_f}"),
        ("backbone", "model"),
        (r"layers\.(\d+)\.norm\.", r"layers.\1.input_layernorm."),
        (r"layers\.(\d+)\.norm2", rf"layers.\1.{norm2}"),
        (rf"layers\.({layers})\.mixer", r"layers.\1.self_attn"),
        (r"layers\.(\d+)\.mixer", r"layers.\1.mamba"),
    ]


def gated(source: Sources, up: str = "up_proj", gate: str = "gate_proj", down: str = "down_proj") -> Sources:
    """``source``, with the products of each :class:`..layers.GatedMLP` under their usual names:
    fc1 is ``up`` above ``gate``, fc2 is ``down``."""

    def find(name: str) -> str | Source:
        *_, module, leaf = name.split(".")
        if module not in ("fc1", "fc2"):
            return source(name)
        prefix = _one_name(source(name)).removesuffix(f"{module}.{leaf}")
        if module == "fc2":
            return f"{prefix}{down}.{leaf}"
        return Source((f"{prefix}{up}.{leaf}", f"{prefix}{gate}.{leaf}"), lambda u, g: torch.cat([u, g]))

    return find


def swap_halves(value: Tensor) -> Tensor:
    """[gate; up] -> [up; gate], as a :class:`..layers.GatedMLP` has them."""
    gate, up = value.chunk(2)
    return torch.cat([up, gate])


def scaled(source: str | Source, *parts: tuple[int, float]) -> Source:
    """The same tensor with its rows multiplied: for each (rows, factor), so many rows by that factor.

    In float32, whatever the tensor's dtype. Rows of -1 in the only part mean all of them.
    """
    base = Source((source,)) if isinstance(source, str) else source

    def combine(*tensors: Tensor) -> Tensor:
        value = base.combine(*tensors).float()
        if parts[0][0] == -1:
            return value * parts[0][1]
        pieces = value.split([rows for rows, _ in parts])
        return torch.cat([piece * factor for piece, (_, factor) in zip(pieces, parts, strict=True)])

    return replace(base, combine=combine)


def _one_name(source: str | Source) -> str:
    return source if isinstance(source, str) else source.names[0]
