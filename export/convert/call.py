"""One counted call under analysis: what goes in, what comes out, how sizes follow length and batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec

from streamssm.export.convert.calls import rebuilt, writes_in_place
from streamssm.export.convert.flow import Factor, Flow, Layout, Meta
from streamssm.export.convert.records import Record, results_of, same_number


@dataclass(frozen=True)
class Sizes:
    """Length and batch of the three runs: the one analysed, a longer one, a wider one."""

    items: int
    longer: int
    batch: int
    wider: int


@dataclass
class Call:
    """The call, its record in the other two runs, and the metas of the followed leaves."""

    name: str
    func: Callable
    leaves: list[Any]
    spec: TreeSpec
    metas: dict[int, Meta]
    result: Any
    outs: list[Tensor]
    long: Record
    wide: Record
    sizes: Sizes
    path: str
    kind: str
    line: str

    @property
    def args(self) -> tuple:
        """The positional arguments."""
        return rebuilt(self.leaves, self.spec)[0]

    @property
    def kwargs(self) -> dict:
        """The keyword arguments."""
        return rebuilt(self.leaves, self.spec)[1]

    @property
    def flows(self) -> dict[int, Flow]:
        """The metas, where all are flows."""
        return {index: meta for index, meta in self.metas.items() if isinstance(meta, Flow)}

    @property
    def in_place(self) -> bool:
        """Whether the call changes its first argument."""
        return writes_in_place(self.name, self.kwargs)

    def evaluate(self, leaves: Sequence[Any]) -> list[Tensor]:
        """The function at other leaves; in-place writing goes to copies."""
        if self.in_place:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = rebuilt(leaves, self.spec)
        return results_of(self.name, args, kwargs, self.func(*args, **kwargs))

    def leaf_of(self, value: Tensor) -> int | None:
        """The place among the leaves of a followed tensor."""
        return next((index for index in self.metas if self.leaves[index] is value), None)

    def numbers_follow_length(self) -> list[int]:
        """Leaves, no tensors, that differ in the longer run."""
        return [
            index
            for index, leaf in enumerate(self.leaves)
            if not isinstance(leaf, Tensor) and not same_number(leaf, self.long.leaves[index])
        ]

    def constants_follow_length(self) -> dict[int, list[int]]:
        """Tensors that are not followed, with their axes that are longer in the longer run."""
        found = {}
        for index, leaf in enumerate(self.leaves):
            other = self.long.leaves[index] if index < len(self.long.leaves) else None
            if isinstance(leaf, Tensor) and index not in self.metas and isinstance(other, Tensor):
                axes = [a for a, (m, n) in enumerate(zip(leaf.shape, other.shape, strict=False)) if m != n]
                if axes:
                    found[index] = axes
        return found

    def constant_changes(self) -> bool:
        """Whether a tensor that is not followed has other values in the longer run."""
        return any(
            _differs(leaf, self.long.leaves[index])
            for index, leaf in enumerate(self.leaves)
            if isinstance(leaf, Tensor) and index not in self.metas
        )

    def slope(self, size: int, longer: int) -> Fraction:
        """How a size grows with the length of the input."""
        return Fraction(longer - size, self.sizes.longer - self.sizes.items)

    def layouts(self) -> list[Layout | str]:
        """The layout of each result as its sizes tell it, or why there is none."""
        return [
            self._layout(tuple(out.shape), self.long.outs[i], self.wide.outs[i])
            for i, out in enumerate(self.outs)
        ]

    def _layout(self, shape: tuple[int, ...], long: tuple[int, ...], wide: tuple[int, ...]) -> Layout | str:
        if not len(shape) == len(long) == len(wide):
            return "rank"
        axes: list[tuple[Factor, ...]] = []
        for sizes in zip(shape, long, wide, strict=True):
            factors = self._factors(*sizes)
            if factors is None:
                return "batch"
            axes.append(factors)
        times, batches = (sum(s in factors for factors in axes) for s in "TB")
        if times != 1:
            return "no time" if not times else "two times"
        return tuple(axes) if batches == 1 else "batch"

    def _factors(self, size: int, long: int, wide: int) -> tuple[Factor, ...] | None:
        if size == long == wide:
            return (size,)
        if size == wide:
            return ("T",)
        if size == long and (size, wide) == (self.sizes.batch, self.sizes.wider):
            return ("B",)
        for index, flow in self.flows.items():  # batch together with something: as it came in
            leaf_shapes = (self.leaves[index].shape, self.long.leaves[index], self.wide.leaves[index])
            for axis, sizes in enumerate(zip(*leaf_shapes, strict=True)):
                if sizes == (size, long, wide):
                    return flow.layout[axis]
        return None


def _differs(value: Tensor, longer: Tensor) -> bool:
    """Whether the longer constant does not begin with the other one."""
    if value.data_ptr() == longer.data_ptr() and value.shape == longer.shape:
        return False
    if value.ndim != longer.ndim or value.dtype != longer.dtype:
        return True
    for axis, size in enumerate(value.shape):
        longer = longer.narrow(axis, 0, min(size, longer.shape[axis]))
    return longer.shape != value.shape or not torch.equal(longer.nan_to_num(), value.nan_to_num())
