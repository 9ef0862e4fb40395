"""Runs of a forward at another length and another batch: they tell which sizes and numbers follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamssm.export.convert.calls import leaves_of, tensors_of, writes_in_place
from streamssm.export.convert.tracker import Follower


@dataclass(frozen=True)
class Record:
    """One counted call: its arguments as leaves, shapes of followed tensors in place of them, and
    the shapes of the tensors it gives."""

    name: str
    leaves: tuple[Any, ...]
    outs: tuple[tuple[int, ...], ...]


class Recorder(Follower):
    """Runs the forward as it is and keeps the :class:`Record` of every counted call."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def counted(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Call and record."""
        leaves = tuple(self._kept_form(leaf) for leaf in leaves_of((args, kwargs))[0])
        result = func(*args, **kwargs)
        outs = results_of(name, args, kwargs, result)
        self.records.append(Record(name, leaves, tuple(tuple(x.shape) for x in outs)))
        return result

    def _kept_form(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if self.followed(leaf):
            return tuple(leaf.shape)
        return leaf.detach() if isinstance(leaf, nn.Parameter) else leaf.detach().clone()


def results_of(name: str, args: tuple, kwargs: dict, result: Any) -> list[Tensor]:
    """The tensors a call gives; the first argument of one that writes in place is the last."""
    outs = tensors_of(result)
    if writes_in_place(name, kwargs) and not any(out is args[0] for out in outs):
        outs.append(args[0])
    return outs


def copies_of(name: str, args: tuple, kwargs: dict, result: Any) -> list[Tensor]:
    """Copies of :func:`results_of`, safe from later writing in place."""
    return [x.clone() for x in results_of(name, args, kwargs, result)]


def same_number(a: Any, b: Any) -> bool:
    """Whether two leaves that are no tensors are the same."""
    if isinstance(a, torch.Size | tuple) or isinstance(b, torch.Size | tuple):
        return tuple(a) == tuple(b)
    return bool(a is b or a == b)
