"""mamba_ssm: Mamba, Mamba2, and in plain torch its norms, Block and MixerModel, whose own forward
calls kernels that need a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.registry import register, register_rewrite
from streamssm.export.convert.twins.adoption import OWN, mamba, mamba2
from streamssm.export.layers.base import StreamingLayer


def _mamba(module: nn.Module) -> StreamingLayer:
    if getattr(module, "bimamba_type", "none") not in ("none", None, False):
        raise TwinError(
            f"scans in both directions (bimamba_type={module.bimamba_type!r}): the first output needs the "
            "last input",
            "use bimamba_type='none' and train again",
        )
    return mamba(module)


def _mamba2(module: nn.Module) -> StreamingLayer:
    D = module.out_proj.in_features
    if getattr(module, "d_ssm", D) != D or getattr(module, "d_inner", D) != D:
        raise TwinError("has channels beside the scan (d_ssm)", OWN)
    low, high = getattr(module, "dt_limit", (0.0, math.inf))
    norm = getattr(module, "norm", None)
    groups = module.ngroups
    return mamba2(
        module,
        groups,
        (low, high),
        getattr(norm, "eps", 1e-5),
        getattr(norm, "norm_before_gate", False),
        getattr(norm, "group_size", None) or D,
    )


def _upcast(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """RMSNorm or LayerNorm of x, by its class's name."""
    h = _upcast(x)
    if "RMS" in type(norm).__name__:
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
        bias = getattr(norm, "bias", None)
        return (h if bias is None else h + bias).to(x.dtype)
    return F.layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def _rms_norm(
    module: nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Any:
    total = x if residual is None else x + residual
    y = _norm(module, total)
    return (y, _upcast(total) if residual_in_fp32 else total) if prenorm else y


def _gated_norm(module: nn.Module, x: Tensor, z: Tensor | None = None) -> Tensor:
    h, gate = _upcast(x), None if z is None else F.silu(_upcast(z))
    if gate is not None and not module.norm_before_gate:
        h = h * gate
    size = module.group_size or h.shape[-1]
    grouped = h.unflatten(-1, (-1, size))
    h = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + module.eps)).flatten(
        -2
    ) * module.weight
    if gate is not None and module.norm_before_gate:
        h = h * gate
    return h.to(x.dtype)


def _add_norm(block: nn.Module, norm: nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    residual = x if residual is None else x + residual
    y = _norm(norm, residual.to(norm.weight.dtype))
    return y, _upcast(residual) if block.residual_in_fp32 else residual


def _block(
    module: nn.Module,
    hidden_states: Tensor,
    residual: Tensor | None = None,
    inference_params: Any = None,
    **mixer_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    x, residual = _add_norm(module, module.norm, hidden_states, residual)
    x = module.mixer(x, inference_params=inference_params, **mixer_kwargs)
    if getattr(module, "mlp", None) is not None:
        x, residual = _add_norm(module, module.norm2, x, residual)
        x = module.mlp(x)
    return x, residual


def _mixer_model(module: nn.Module, input_ids: Tensor, inference_params: Any = None, **kwargs: Any) -> Tensor:
    x, residual = module.embedding(input_ids), None
    for layer in module.layers:
        x, residual = layer(x, residual, inference_params=inference_params, **kwargs)
    return _norm(module.norm_f, (x + residual).to(module.norm_f.weight.dtype))


def register_twins() -> None:
    """Make them known."""
    register("mamba_ssm.modules.mamba_simple.Mamba", _mamba)
    register("mamba_ssm.modules.mamba2.Mamba2", _mamba2)
    register("mamba_ssm.modules.mamba2_simple.Mamba2Simple", _mamba2)
    for name in ("mamba_ssm.ops.triton.layer_norm.RMSNorm", "mamba_ssm.ops.triton.layernorm.RMSNorm"):
        register_rewrite(name, _rms_norm)
    register_rewrite("mamba_ssm.ops.triton.layernorm_gated.RMSNorm", _gated_norm)
    for name in ("mamba_ssm.modules.block.Block", "mamba_ssm.modules.mamba_simple.Block"):
        register_rewrite(name, _block)
    register_rewrite("mamba_ssm.models.mixer_seq_simple.MixerModel", _mixer_model)
