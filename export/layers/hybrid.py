"""A stack of pre-norm residual blocks with a mixer each: the body of most published models.

Modules are named as in mamba_ssm: ``layers.{i}.norm``, ``.mixer``, ``.norm2``, ``.mlp``, and
``norm_f`` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from streamssm.errors import LayerError
from streamssm.export.layers.attention import SlidingWindowAttention
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, scoped, with_scope
from streamssm.export.layers.gru import GRU
from streamssm.export.layers.layer_norm import LayerNorm
from streamssm.export.layers.lstm import LSTM
from streamssm.export.layers.mamba import Mamba
from streamssm.export.layers.mamba2 import Mamba2
from streamssm.export.layers.mlp import GatedMLP
from streamssm.export.layers.rms_norm import RMSNorm

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


class Block(StreamingLayer):
    """x + mixer(norm(x)), then the same with norm2 and the MLP if there is one.

    States: those of the mixer under ``mixer.``.
    """

    def __init__(
        self, norm: StreamingLayer, mixer: StreamingLayer, norm2: StreamingLayer, mlp: GatedMLP | None
    ):
        super().__init__()
        self.item_shape = mixer.item_shape
        self.norm, self.mixer = norm, mixer
        self.norm2, self.mlp = (None, None) if mlp is None else (norm2, mlp)

    def state_spec(self) -> dict[str, StateSpec]:
        """The mixer's states."""
        return with_scope(self.mixer.state_spec(), "mixer")

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Mix over time, then over channels."""
        state = self.start(x, state)
        y, following = self.mixer(self.norm(x)[0], scoped(state, "mixer"))
        x = x + y
        if self.mlp is not None:
            x = x + self.mlp(self.norm2(x)[0])[0]
        return x, with_scope(following, "mixer")


class HybridStack(StreamingLayer):
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
        super().__init__()
        options = {"mamba": mamba, "mamba2": mamba2, "swa": swa, "gru": gru, "lstm": lstm}
        _check_pattern(pattern, norm)
        self.item_shape = (d_model,)
        self.layers = nn.ModuleList(
            Block(
                NORMS[norm](d_model, eps),
                _mixer(kind, d_model, options[kind] or {}),
                NORMS[norm](d_model, eps),
                None if mlp is None else GatedMLP(d_model, **mlp),
            )
            for kind in pattern
        )
        self.norm_f = NORMS[norm](d_model, eps)

    def state_spec(self) -> dict[str, StateSpec]:
        """The states of all blocks."""
        return {
            name: spec
            for index, block in enumerate(self.layers)
            for name, spec in with_scope(block.state_spec(), f"layers.{index}").items()
        }

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the blocks and the last norm."""
        state = self.start(x, state)
        following: State = {}
        for index, block in enumerate(self.layers):
            x, next_state = block(x, scoped(state, f"layers.{index}"))
            following.update(with_scope(next_state, f"layers.{index}"))
        return self.norm_f(x)[0], following


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
