"""Pre-norm residual blocks with a mixer each, and a stack of them: the body of most models.

Modules are named as in mamba_ssm: ``layers.{i}.norm``, ``.mixer``, ``.norm2``, ``.mlp``, and
``norm_f`` at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from streamssm.export.layers.base import State, StateSpec, StreamingLayer, scoped, with_scope


class Block(StreamingLayer):
    """x + mixer(norm(x)), then the same with norm2 and the MLP if there is one.

    The MLP is any layer without state. States: those of the mixer under ``mixer.``.
    """

    def __init__(
        self,
        norm: StreamingLayer,
        mixer: StreamingLayer,
        norm2: StreamingLayer | None = None,
        mlp: StreamingLayer | None = None,
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


class Stack(StreamingLayer):
    """Blocks one after another, x [B, T, d_model] -> the same shape, and a last norm.

    States: ``layers.{i}.*``, those of each block.
    """

    def __init__(self, blocks: Sequence[StreamingLayer], norm_f: StreamingLayer):
        super().__init__()
        self.item_shape = norm_f.item_shape
        self.layers = nn.ModuleList(blocks)
        self.norm_f = norm_f

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
