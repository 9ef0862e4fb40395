"""A stack of blocks from a pattern of mixers: see :mod:`.stack` for the names of its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamssm.errors import LayerError
from streamssm.export.layers.attention import SlidingWindowAttention
from streamssm.export.layers.base import StreamingLayer
from streamssm.export.layers.gru import GRU
from streamssm.export.layers.layer_norm import LayerNorm
from streamssm.export.layers.lstm import LSTM
from streamssm.export.layers.mamba import Mamba
from streamssm.export.layers.mamba2 import Mamba2
from streamssm.export.layers.mlp import GatedMLP
from streamssm.export.layers.rms_norm import RMSNorm
from streamssm.export.layers.stack import Block, Stack

Options = Mapping[str, Any]

MIXERS: dict[str, Callable[..., StreamingLayer]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "swa": SlidingWindowAttention,
    "gru": GRU,
    "lstm": LSTM,
}
NORMS: dict[str, Callable[..., StreamingLayer]] = {"rms": RMSNorm, "layer": LayerNorm}
#: arguments that the stack itself sets from d_model
SET_BY_STACK = ("d_model", "input_size", "hidden_size")


def _mixer(kind: str, d_model: int, options: Options) -> StreamingLayer:
    sizes = (d_model, d_model) if kind in ("gru", "lstm") else (d_model,)
    return MIXERS[kind](*sizes, **options)


class HybridStack(Stack):
    """x [B, T, d_model] -> y [B, T, d_model].

    ``pattern`` names the mixers from first to last, as in ``["mamba", "mamba", "swa"] * 4``;
    ``mamba``, ``mamba2``, ``swa``, ``gru`` and ``lstm`` are the options of each kind, without
    d_model. ``mlp`` adds a :class:`GatedMLP` with those options to every block. ``norm`` is
    "rms" or "layer". States: ``layers.{i}.mixer.*``.
    """

    def __init__(
        self,
        pattern: Sequence[str],
        d_model: int,
        *,
        mamba: Options | None = None,
        mamba2: Options | None = None,
        swa: Options | None = None,
        gru: Options | None = None,
        lstm: Options | None = None,
        mlp: Options | None = None,
        norm: str = "rms",
        eps: float = 1e-5,
    ):
        options = {"mamba": mamba, "mamba2": mamba2, "swa": swa, "gru": gru, "lstm": lstm}
        _check_pattern(pattern, norm)
        blocks = [
            Block(
                NORMS[norm](d_model, eps),
                _mixer(kind, d_model, options[kind] or {}),
                NORMS[norm](d_model, eps),
                None if mlp is None else GatedMLP(d_model, **mlp),
            )
            for kind in pattern
        ]
        super().__init__(blocks, NORMS[norm](d_model, eps))


def _check_pattern(pattern: Sequence[str], norm: str) -> None:
    if isinstance(pattern, str) or not pattern:
        raise LayerError(
            f"HybridStack: pattern = {pattern!r} must be a list of mixers, such as ['mamba', 'swa']"
        )
    for kind in pattern:
        if kind not in MIXERS:
            raise LayerError(f"HybridStack: mixer {kind!r} is unknown; choose among {', '.join(MIXERS)}")
    if norm not in NORMS:
        raise LayerError(f"HybridStack: norm {norm!r} is unknown; choose among {', '.join(NORMS)}")
