"""Recurrent layers after a look-ahead: their first items lie before the start of the stream.

Those items must leave the state at zero. The session says which they are while it calls a twin;
a twin that honours it says ``handles_warm_up = True``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

from streamssm.export.layers.base import State
from streamssm.export.layers.conv import CausalConv1d

_BEFORE: ContextVar[Tensor | None] = ContextVar("before_start", default=None)


@contextlib.contextmanager
def starting(before: Tensor | None) -> Iterator[None]:
    """Within it, items where ``before`` [B, T] is true lie before the start."""
    token = _BEFORE.set(before)
    try:
        yield
    finally:
        _BEFORE.reset(token)


def before_start() -> Tensor | None:
    """[B, T], true for items before the start of the stream; None if there can be none."""
    return _BEFORE.get()


def silenced(x: Tensor) -> Tensor:
    """x [B, T, ...] with zeros before the start."""
    before = _BEFORE.get()
    if before is None:
        return x
    return x.masked_fill(before.reshape(*before.shape, *[1] * (x.ndim - 2)), 0.0)


class SilentConv1d(CausalConv1d):
    """The convolution inside Mamba: silent before the start, so that nothing flows into any state."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Convolve what has begun."""
        y, state = super().forward(silenced(x), state)
        return silenced(y), state
