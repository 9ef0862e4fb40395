"""transformers: the state-space mixers of its hybrid families, RG-LRU, and attention with rotary positions.

Attention without positions needs no twin: its F.scaled_dot_product_attention is recognised itself.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.registry import register
from streamssm.export.convert.twins.adoption import OWN, adopt, mamba, mamba2
from streamssm.export.convert.twins.zamba import AdaptedAttention, MultiHeadTwin
from streamssm.export.layers import SlidingWindowAttention
from streamssm.export.layers.base import State, StreamingLayer
from streamssm.export.layers.rg_lru import RGLRU

MODELS = "transformers.models"
ENDLESS = (
    "attends to the whole past, which grows without end",
    "give convert() a window=, the number of last items to attend to; the file says that it was imposed",
)


def _require_silu(module: nn.Module) -> None:
    if getattr(module, "activation", "silu") not in ("silu", "swish"):
        raise TwinError(f"activates with {module.activation}, not silu", OWN)


def _mamba(module: nn.Module) -> StreamingLayer:
    _require_silu(module)
    return mamba(module)


def _falcon_mamba(module: nn.Module) -> StreamingLayer:
    _require_silu(module)
    return mamba(module, inner_norm=module.rms_eps, inner_weights=False)


def _jamba(module: nn.Module) -> StreamingLayer:
    _require_silu(module)
    return mamba(module, inner_norm=module.dt_layernorm.variance_epsilon)


def _mamba2(module: nn.Module) -> StreamingLayer:
    _require_silu(module)
    norm = getattr(module, "norm", None)
    low, high = module.time_step_limit
    eps = getattr(norm, "variance_epsilon", 1e-5)
    size = getattr(norm, "group_size", module.out_proj.in_features)
    return mamba2(module, module.n_groups, (low, high), eps, group_size=size)


class _Scaled(nn.Module):
    """A projection whose output is multiplied channel by channel."""

    def __init__(self, linear: nn.Linear, owner: nn.Module):
        super().__init__()
        self.linear, self.owner = linear, owner

    def forward(self, x: Tensor) -> Tensor:
        """Scale, project, scale."""
        return self.linear(x * self.owner.ssm_in_multiplier) * self.owner.mup_vector


def _falcon_h1(module: nn.Module) -> StreamingLayer:
    if module.mamba_rms_norm:
        norm = module.norm
        layer = mamba2(
            module,
            module.n_groups,
            tuple(module.time_step_limit),
            norm.variance_epsilon,
            norm.norm_before_gate,
            module.out_proj.in_features // norm.n_groups,
        )
    else:
        layer = _mamba2(module)
    layer.in_proj = _Scaled(layer.in_proj, module)
    return layer


class _RecurrentUnit(RGLRU):
    """RG-LRU called with position ids, which say that the first item is the first."""

    def call(self, x: Tensor, state: State, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, State]:
        """Without them."""
        return self(x, state)


def _rg_lru(module: nn.Module) -> StreamingLayer:
    blocks, size = module.input_gate_weight.shape[:2]
    return adopt(lambda: _RecurrentUnit(blocks * size, blocks), module)


def _rotary(module: nn.Module, window: int | None) -> StreamingLayer | None:
    """Attention of the Llama form with rotary positions; None where there are none."""
    config = module.config
    rotates = getattr(config, "use_mem_rope", True)
    positions = getattr(config, "position_embedding_type", "rope")
    if not rotates or positions != "rope":
        return None
    own = getattr(module, "sliding_window", None)
    if window is None and own is None:
        raise TwinError(*ENDLESS)
    adapted = getattr(config, "use_shared_attention_adapter", False)
    kind = AdaptedAttention if adapted else SlidingWindowAttention
    items = min(size for size in (window, own) if size is not None)
    table = getattr(config, "rope_parameters", None) or {}
    factor = table.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0) or 1.0)
    size = module.head_dim
    width = module.q_proj.in_features

    def build() -> SlidingWindowAttention:
        return kind(
            module.o_proj.out_features,
            module.q_proj.out_features // size,
            items,
            num_kv_heads=module.k_proj.out_features // size,
            head_dim=size,
            rope_base=table.get("rope_theta", getattr(config, "rope_theta", 10000.0)),
            rotary_dim=int(size * factor),
            bias=module.q_proj.bias is not None,
            out_bias=module.o_proj.bias is not None,
            input_dim=width,
            scale=module.scaling * getattr(module, "key_multiplier", 1.0),
        )

    layer = adopt(build, module, left_out=("linear_",) if adapted else ())
    if adapted:
        layer.adapt(module)
    layer.imposed = items != own
    return layer


def register_twins() -> None:
    """Make them known."""
    register(f"{MODELS}.mamba.modeling_mamba.MambaMixer", _mamba)
    register(f"{MODELS}.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer", _falcon_mamba)
    register(f"{MODELS}.jamba.modeling_jamba.JambaMambaMixer", _jamba)
    register(f"{MODELS}.mamba2.modeling_mamba2.Mamba2Mixer", _mamba2)
    register(f"{MODELS}.bamba.modeling_bamba.BambaMixer", _mamba2)
    register(f"{MODELS}.granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridMambaLayer", _mamba2)
    register(f"{MODELS}.zamba2.modeling_zamba2.Zamba2MambaMixer", _mamba2)
    register(f"{MODELS}.nemotron_h.modeling_nemotron_h.NemotronHMamba2Mixer", _mamba2)
    register(f"{MODELS}.zamba.modeling_zamba.ZambaMambaMixer", MultiHeadTwin)
    register(f"{MODELS}.falcon_h1.modeling_falcon_h1.FalconH1Mixer", _falcon_h1)
    register(f"{MODELS}.recurrent_gemma.modeling_recurrent_gemma.RecurrentGemmaRglru", _rg_lru)
    for family, name in (
        ("bamba", "BambaAttention"),
        ("falcon_h1", "FalconH1Attention"),
        ("granitemoehybrid", "GraniteMoeHybridAttention"),
        ("zamba2", "Zamba2Attention"),
        ("recurrent_gemma", "RecurrentGemmaAttention"),
    ):
        register(f"{MODELS}.{family}.modeling_{family}.{name}", _rotary)
