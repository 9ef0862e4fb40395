"""torch.nn.GRU and LSTM, of any number of layers, batch first or not, with an explicit start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.registry import register
from streamssm.export.convert.warm import before_start, silenced
from streamssm.export.layers.base import State, StateSpec, StreamingLayer
from streamssm.export.ops import gru, lstm

#: added to a gate before its sigmoid: closes or opens it for good, in float32 and float64
SHUT = 1e4


class RecurrentTwin(StreamingLayer):
    """x [B, T, input_size] -> y [B, T, hidden_size].

    States ``h{n}`` (and ``c{n}``) [B, hidden_size] are differences from the start that the user
    gives, zero by default.
    """

    handles_warm_up = True

    def __init__(self, module: nn.RNNBase, cell: bool):
        super().__init__()
        if module.bidirectional:
            raise TwinError(
                "runs backwards too (bidirectional=True): its first output needs the last input",
                "set bidirectional=False and train again; a look-ahead of a few items can stand in for the "
                "rest (a centred convolution before it with lookahead=)",
            )
        if module.proj_size:
            raise TwinError("projects its output (proj_size)", "set proj_size=0 and put a Linear after it")
        self.source, self.kinds = module, "hc" if cell else "h"
        self.item_shape = (module.input_size,)

    def state_spec(self) -> dict[str, StateSpec]:
        """One h, or h and c, for each layer."""
        size, layers = (self.source.hidden_size,), range(self.source.num_layers)
        return {f"{kind}{layer}": StateSpec(size) for layer in layers for kind in self.kinds}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Start from zeros."""
        return self.call(x, self.start(x, state), (x,), {})

    def call(self, x: Tensor, state: State, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, State]:
        """As the user calls it, with hx as second argument or none."""
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        starts = [None] * len(self.kinds) if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        following = {}
        before = before_start()
        for layer in range(self.source.num_layers):
            own = {k: None if s is None else s[layer] for k, s in zip(self.kinds, starts, strict=True)}
            names = [f"{kind}{layer}" for kind in self.kinds]
            given = [_sum(state[n], own[n[0]]) for n in names]
            x, *after = self._layer(layer, silenced(x), given, before)
            following |= {n: _sum(value, own[n[0]], -1) for n, value in zip(names, after, strict=True)}
        return x, following

    def _layer(self, layer: int, x: Tensor, given: list[Tensor], before: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh = self._weights(layer)
        if before is not None:
            # one more input, true before the start: it keeps the state as it is
            x = torch.cat([x, before[..., None].to(x.dtype)], dim=-1)
            w_ih = torch.cat([w_ih, self._gates(w_ih)[:, None]], dim=1)
        return (lstm if len(given) == 2 else gru)(x, w_ih, w_hh, b_ih, b_hh, *given)

    def _gates(self, weight: Tensor) -> Tensor:
        """GRU: r, z, n with z shut to the old state. LSTM: i, f, g, o with i shut and f open."""
        signs = (0.0, SHUT, 0.0) if self.kinds == "h" else (-SHUT, SHUT, 0.0, 0.0)
        return weight.new_tensor(signs).repeat_interleave(self.source.hidden_size)

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        source = self.source
        w_ih, w_hh = (getattr(source, f"weight_{kind}_l{layer}") for kind in ("ih", "hh"))
        if not source.bias:
            zeros = w_ih.new_zeros(w_ih.shape[0])
            return w_ih, w_hh, zeros, zeros
        return w_ih, w_hh, getattr(source, f"bias_ih_l{layer}"), getattr(source, f"bias_hh_l{layer}")


def _sum(a: Tensor, b: Tensor | None, sign: int = 1) -> Tensor:
    return a if b is None else a + sign * b.to(a.dtype)


def _time(module: nn.Module) -> int:
    return 1 if module.batch_first else 0


def _elman(module: nn.Module) -> StreamingLayer:
    raise TwinError("is a plain RNN, which has no operator here", "use nn.GRU or nn.LSTM")


def register_twins() -> None:
    """Make them known."""
    register("torch.nn.modules.rnn.GRU", lambda module: RecurrentTwin(module, False), time=_time)
    register("torch.nn.modules.rnn.LSTM", lambda module: RecurrentTwin(module, True), time=_time)
    register("torch.nn.modules.rnn.RNN", _elman, time=_time)
