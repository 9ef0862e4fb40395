"""The layer contract: whole-sequence form and step form are one function.

    init_state(batch) -> State               named tensors, zero at the start of a stream
    forward(x, state) -> (y, state')         x [B, T, *item_shape], any T that is a multiple of hop
    output_ratio, lookahead, hop             data that containers add up

Numeric policy, for every layer: the recurrence runs in the dtype of the state, which is
float32 whatever the weights' dtype (a float64 state makes a float64 reference).
Every state starts at zero: a layer whose natural start is another value stores the
difference from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from streamssm.errors import LayerError

State = dict[str, Tensor]


@dataclass(frozen=True)
class StateSpec:
    """Shape (without batch) and dtype of one state tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


class StreamingLayer(nn.Module):
    """Base of all layers; see the module docstring for the contract."""

    #: shape of one input item (without batch and time); None: any shape
    item_shape: tuple[int, ...] | None = ()
    #: dtype of one input item
    item_dtype: torch.dtype = torch.float32
    #: integer items lie in [0, vocabulary)
    vocabulary: int | None = None
    #: input items the output lags behind: output t belongs to input item t - lookahead
    lookahead: int = 0
    #: output items per input item
    output_ratio: Fraction = Fraction(1)
    #: what the output is: "features", "logits" or "probability"
    output_kind: str = "features"

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[str, Tensor] = {}

    @property
    def hop(self) -> int:
        """Input items consumed at a time: T is always a multiple of it."""
        return self.output_ratio.denominator

    def ratio_of(self, output: str) -> Fraction:
        """Output items per input item of one of several outputs; all alike unless a layer says so."""
        return self.output_ratio

    def state_spec(self) -> dict[str, StateSpec]:
        """Names, shapes and dtypes of the state; empty for a stateless layer."""
        return {}

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state of ``batch`` streams that have seen nothing."""
        return {
            name: torch.zeros(batch, *spec.shape, dtype=spec.dtype, device=device)
            for name, spec in self.state_spec().items()
        }

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x [B, T, *item_shape] -> y [B, T * output_ratio, ...] and the next state."""
        raise NotImplementedError

    def start(self, x: Tensor, state: State | None) -> State:
        """The given state, or a fresh one on x's device.

        Raises:
            LayerError: x or the state does not fit this layer.
        """
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            self._check(x, state)
        return self.init_state(x.shape[0], x.device) if state is None else state

    def _check(self, x: Tensor, state: State | None) -> None:
        name = type(self).__name__
        shape = self.item_shape
        if x.ndim < 2 or (shape is not None and tuple(x.shape[2:]) != tuple(shape)):
            raise LayerError(
                f"{name}: x has shape {tuple(x.shape)}; give [batch, time, *item] with items of shape {shape}"
            )
        if x.shape[1] % self.hop:
            raise LayerError(f"{name}: T = {x.shape[1]} is not a multiple of the hop of {self.hop}")
        if state is not None and state.keys() != self.state_spec().keys():
            raise LayerError(
                f"{name}: the state has {sorted(state)}, this layer has {sorted(self.state_spec())}; "
                "start from init_state(batch)"
            )

    def register_constant(self, name: str, value: Tensor) -> None:
        """A buffer that is no weight: not in the state dict, and never rounded to 16 bits
        when the weights are, because front ends and rotary angles do not survive that."""
        self._constants[name] = value.double()
        self.register_buffer(name, value.float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        for name, exact in self._constants.items():
            moved = self._buffers[name]
            if moved is not None:
                dtype = torch.promote_types(moved.dtype, torch.float32)
                self._buffers[name] = exact.to(moved.device, dtype)
        return self


def output_shape(layer: StreamingLayer, item_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one output item for input items of ``item_shape``, found by a call with T = 0.

    Raises:
        LayerError: the layer has several outputs.
    """
    weight = next((p for p in layer.parameters() if p.is_floating_point()), None)
    dtype, device = (torch.float32, None) if weight is None else (weight.dtype, weight.device)
    if not layer.item_dtype.is_floating_point:
        dtype = layer.item_dtype
    with torch.no_grad():
        y, _ = layer(torch.zeros(1, 0, *item_shape, dtype=dtype, device=device))
    if not isinstance(y, Tensor):
        raise LayerError(f"{type(layer).__name__} gives several outputs; nothing can follow it")
    return tuple(y.shape[2:])


def scoped(state: State, scope: str) -> State:
    """The part of a container's state that belongs to the child named ``scope``."""
    prefix = scope + "."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def with_scope(state: dict, scope: str) -> dict:
    """Prefix every name with the child's name."""
    return {f"{scope}.{name}": value for name, value in state.items()}


def joined_spec(children: Iterable[tuple[str, StreamingLayer]]) -> dict[str, StateSpec]:
    """The states of all children, each under its child's name."""
    return {
        name: spec
        for child, layer in children
        for name, spec in with_scope(layer.state_spec(), child).items()
    }


def renamed(state: dict, old: str, new: str) -> dict:
    """The one tensor ``old`` under the name ``new``; nothing if it is not there."""
    return {new: state[old]} if old in state else {}


def state_bytes(layer: StreamingLayer) -> int:
    """Bytes that one stream of this layer remembers."""
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in layer.state_spec().values())


def require_whole(owner: str, minimum: int = 1, **values: int) -> None:
    """Refuse constructor arguments that are not whole numbers of at least ``minimum``.

    Raises:
        LayerError: names the argument and the value seen.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise LayerError(f"{owner}: {name} = {value!r} must be a whole number of at least {minimum}")


def require_divisor(owner: str, **values: tuple[int, int]) -> None:
    """Refuse ``name=(divisor, whole)`` where the divisor does not divide the whole.

    Raises:
        LayerError: names the argument and both values.
    """
    for name, (divisor, whole) in values.items():
        if whole % divisor:
            raise LayerError(f"{owner}: {name} = {divisor} does not divide {whole}")
