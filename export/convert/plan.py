"""The plan: for each counted call of a forward what a stream does instead of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec

from streamssm.export.convert.calls import leaves_of, rebuilt
from streamssm.export.convert.flow import Flow, Layout
from streamssm.export.layers.base import StateSpec

if TYPE_CHECKING:
    from streamssm.export.convert.session import Session


@dataclass(frozen=True)
class Mask:
    """Items whose index is below ``lead`` read ``fill``; see :mod:`.flow` for the index."""

    rate: Fraction
    late: int
    lead: int
    fill: float


@dataclass(frozen=True)
class Fit:
    """Make a tensor as late as a call needs it: put ``history`` items of the past before it (kept
    in ``state``), overwrite those that are padding, drop ``drop`` items at the end, which come
    again. ``extra`` is that of the flow it is applied to."""

    layout: Layout
    extra: int = 0
    history: int = 0
    state: str = ""
    mask: Mask | None = None
    drop: int = 0


@dataclass
class Step:
    """A call that a stream does as the user wrote it, after fitting its arguments.

    ``fits`` go by the position of the argument among the leaves of ``(args, kwargs)``.
    """

    name: str
    path: str
    line: str = ""
    fits: dict[int, Fit] = field(default_factory=dict)
    #: whether a window was imposed on it
    imposed: bool = False
    #: of each result, for messages
    flows: tuple[Flow | None, ...] = ()

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The call in a stream."""
        args, kwargs = self.fitted(session, args, kwargs)
        return func(*args, **kwargs)

    def reference(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The call in the whole-sequence form, with the window if one is imposed."""
        return func(*args, **kwargs)

    def fitted(self, session: Session, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments, fitted."""
        if not self.fits:
            return args, kwargs
        leaves, spec = leaves_of((args, kwargs))
        for index, fit in self.fits.items():
            leaves[index] = session.fit(leaves[index], fit)
        return rebuilt(leaves, spec)

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.path or 'the model itself'}, {self.name}" + (f", {self.line}" if self.line else "")


@dataclass
class Dead(Step):
    """A call whose result no output needs: zeros of the right form stand for it."""

    shapes: tuple[Any, ...] = ()
    spec: TreeSpec | None = None
    in_place: bool = False

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Zeros."""
        if self.in_place:
            return args[0]
        leaves = [torch.zeros(s[0], dtype=s[1]) if isinstance(s, tuple) else s for s in self.shapes]
        return rebuilt(leaves, self.spec)


def dead_form(result: Any) -> tuple[tuple[Any, ...], TreeSpec]:
    """What :class:`Dead` needs to make zeros in the form of ``result``."""
    leaves, spec = leaves_of(result)
    shapes = [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else None for x in leaves]
    return tuple(shapes), spec


@dataclass(frozen=True)
class OutputPlan:
    """One output: its name, place among the leaves of the result, fit, layout and rate; its dtype, or
    None for that of the weights."""

    name: str
    leaf: int
    fit: Fit | None
    layout: Layout
    rate: Fraction
    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass
class Plan:
    """All that turns a forward into a stream; it holds no tensor and no module."""

    steps: list[Step]
    states: dict[str, StateSpec]
    outputs: tuple[OutputPlan, ...]
    hop: int
    lookahead: int
    #: what makes the stream late: (place, by how many input items)
    delays: tuple[tuple[str, Fraction], ...] = ()
    vocabulary: int | None = None
    #: the attention window that convert imposed, if it did on any call
    window_imposed: int | None = None
    clock: bool = False

    def __deepcopy__(self, memo: dict) -> Plan:
        """Itself: it does not change, and holds nothing that a copy of a model would have its own of."""
        return self
