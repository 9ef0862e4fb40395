"""mambapy: MambaBlock, with the norms of Jamba if it has them."""

from __future__ import annotations

from torch import nn

from streamssm.export.convert.registry import register
from streamssm.export.convert.twins.adoption import mamba
from streamssm.export.layers.base import StreamingLayer


def _block(module: nn.Module) -> StreamingLayer:
    norm = getattr(module, "dt_layernorm", None)
    if norm is None:
        return mamba(module)
    names = {f"{x}_layernorm.weight": f"{x.upper()}_layernorm.weight" for x in "bc"}
    return mamba(module, names, norm.eps, inner_weights=not norm.use_mup)


def register_twins() -> None:
    """Make it known."""
    register("mambapy.mamba.MambaBlock", _block)
