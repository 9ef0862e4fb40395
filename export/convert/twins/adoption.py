"""Building one of our layers around the parameters of another module."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from streamssm.errors import LayerError
from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.warm import SilentConv1d
from streamssm.export.layers import Mamba, Mamba2, StreamingLayer

OWN = "register a twin of your own: streamssm.export.convert.register"


def adopt(
    build: Callable[[], StreamingLayer],
    module: nn.Module,
    names: Mapping[str, str] | None = None,
    left_out: tuple[str, ...] = (),
) -> StreamingLayer:
    """The layer that ``build`` makes, with the parameters of ``module`` themselves in it.

    ``names`` maps our names to theirs where they differ; parameters of theirs that begin with one of
    ``left_out`` are taken care of elsewhere.

    Raises:
        TwinError: a parameter is missing, of another shape, or has no place in our layer.
    """
    try:
        with torch.device("meta"):
            layer = build()
    except LayerError as error:
        raise TwinError(f"has sizes that its twin does not take ({error})", OWN) from error
    theirs = dict(module.named_parameters())
    used = set()
    for name, parameter in list(layer.named_parameters()):
        source = (names or {}).get(name, name)
        given = theirs.get(source)
        if given is None or given.shape != parameter.shape:
            found = "is missing" if given is None else f"has shape {tuple(given.shape)}"
            raise TwinError(f"its parameter {source} {found}, not {tuple(parameter.shape)}", OWN)
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, given)
        used.add(source)
    if left := sorted(name for name in set(theirs) - used if not name.startswith(left_out or "\0")):
        raise TwinError(*_unknown(left))
    return layer.train(module.training)


def _unknown(left: list[str]) -> tuple[str, str]:
    listed = ", ".join(left[:4])
    if any("_b" in name or "rev" in name or "back" in name for name in left):
        return (
            f"scans backwards too (its parameters {listed}): the first output needs the last input",
            "use the forward direction only (bimamba_type='none') and train again",
        )
    return f"has parameters that its twin does not know: {listed}", OWN


def mamba(
    module: nn.Module,
    names: Mapping[str, str] | None = None,
    inner_norm: float | None = None,
    inner_weights: bool = True,
) -> StreamingLayer:
    """:class:`Mamba` around a module whose parameters are named as in mamba_ssm.

    Raises:
        TwinError: as :func:`adopt`.
    """
    for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj"):
        if not hasattr(module, name):
            raise TwinError(f"has no {name}", OWN)
    if any(hasattr(module, name) for name in ("A_b_log", "conv1d_b")):
        raise TwinError(*_unknown(["A_b_log"]))
    D, N = module.A_log.shape

    def build() -> Mamba:
        layer = Mamba(
            module.in_proj.in_features,
            N,
            module.conv1d.weight.shape[-1],
            dt_rank=module.dt_proj.in_features,
            conv_bias=module.conv1d.bias is not None,
            bias=module.in_proj.bias is not None,
            d_inner=D,
            inner_norm=inner_norm,
            inner_weights=inner_weights,
        )
        layer.conv1d = silent(layer.conv1d)
        return layer

    return warm(adopt(build, module, names))


def mamba2(
    module: nn.Module,
    groups: int,
    dt_limit: tuple[float, float],
    eps: float,
    norm_before_gate: bool = False,
    group_size: int | None = None,
) -> StreamingLayer:
    """:class:`Mamba2` around a module whose parameters are named as in mamba_ssm.

    Raises:
        TwinError: as :func:`adopt`.
    """
    H, D = module.A_log.shape[0], module.out_proj.in_features
    channels = module.conv1d.weight.shape[0]
    gated = any(name.startswith("norm.") for name, _ in module.named_parameters())

    def build() -> Mamba2:
        layer = Mamba2(
            module.in_proj.in_features,
            (channels - D) // (2 * groups),
            module.conv1d.weight.shape[-1],
            headdim=D // H,
            ngroups=groups,
            dt_limit=dt_limit,
            norm_before_gate=norm_before_gate,
            norm_group_size=group_size,
            d_has_hdim=module.D.shape[0] != H,
            rmsnorm=gated,
            bias=module.in_proj.bias is not None,
            conv_bias=module.conv1d.bias is not None,
            eps=eps,
            d_inner=D,
            out_bias=module.out_proj.bias is not None,
        )
        layer.conv1d = silent(layer.conv1d)
        return layer

    return warm(adopt(build, module))


def silent(conv: nn.Module) -> SilentConv1d:
    """The same convolution, silent before the start of a stream."""
    return SilentConv1d(
        conv.weight.shape[1] * conv.groups,
        conv.weight.shape[0],
        conv.kernel_size,
        groups=conv.groups,
        bias=conv.bias is not None,
        activation="silu",
    )


def warm(layer: StreamingLayer) -> StreamingLayer:
    """Mark a layer as one that honours :mod:`..warm`."""
    layer.handles_warm_up = True
    return layer
