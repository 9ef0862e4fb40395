"""What is known of a graph's values while its operations are recognised.

Values are rows of float32: ``[B, T, ...]`` with a trailing shape that is known. Rows that meet in
one operation must have the same B and T, which their names say: others could be 1, and broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.native.graph import Graph, Node, Port
from streamssm.native.program import Assembler

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Axes = tuple[object, object]
Emit = Callable[[Assembler], None]

_FLOAT32 = 1
#: more dimensions than an item may have (kMaxRank in kernels/ort/op.h)
_MAX_TRAILING = 4

#: operations that are not run here and give rows of the shape of their first input
_KEEPS_SHAPE = {
    *(f"streamssm.{op}" for op in ("SlidingWindowAttention", "CausalConv1d")),
    *(f"streamssm.{op}" for op in ("SelectiveScan", "StateSpaceDual")),
    *("LayerNormalization", "Softmax", "Clip", "Log", "Sqrt", "Erf", "Gelu"),
}


@dataclass(eq=False)
class Step:
    """An operation on rows. ``states`` are pairs of what is read and what is left for the next call."""

    nodes: list[Node]
    inputs: list[str]
    outputs: list[str]
    emit: Emit
    states: list[tuple[str, str]] = field(default_factory=list)
    recurrent: bool = False
    weight_bytes: int = 0
    quantised: bool = False


class Values:
    """The trailing shapes of a graph's values, and its constants."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes: dict[str, Shape] = {}
        #: B and T of each value with a shape: their names, or for one without a name what occurs once
        self.axes: dict[str, Axes] = {}
        self._inputs = {port.name: port for port in graph.inputs}
        for port in (*graph.inputs, *graph.inner):
            trailing = _item(port.dims[2:])
            open_ends = len(port.dims) >= 3 and not any(isinstance(size, int) for size in port.dims[:2])
            if open_ends and trailing is not None and port.dtype == _FLOAT32:
                self.shapes[port.name], self.axes[port.name] = trailing, _axes(port)

    def rows(self, name: str, shape: Shape | None = None, beside: str | None = None) -> Shape | None:
        """The trailing shape of a value, if it is known, is ``shape`` where that is given, and if B
        and T are those of ``beside`` where that is given."""
        known = self.shapes.get(name)
        fits = beside is None or self.axes.get(name) == self.axes.get(beside)
        return known if fits and (shape is None or known == shape) else None

    def is_input(self, name: str) -> bool:
        """Whether ``name`` comes from outside the graph, as states do."""
        return name in self._inputs and self._inputs[name].dtype == _FLOAT32

    def only(self, name: str, op: str) -> Node | None:
        """The one node that reads ``name``, if it is an ``op`` and ``name`` is no result."""
        readers = self.graph.consumers.get(name, [])
        if len(readers) != 1 or name in self.graph.results or readers[0].kind != op:
            return None
        return readers[0]

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element, which adds no dimension to rows."""
        value = self.graph.constant(name)
        if value is None or value.size != 1 or value.ndim > 3:
            return None
        return float(value.reshape(-1)[0])

    def floats(self, name: str, *shape: int) -> Array | None:
        """A float32 constant, of this shape."""
        value = self.graph.constant(name)
        return value if value is not None and value.dtype == np.float32 and value.shape == shape else None

    def integers(self, name: str) -> list[int] | None:
        """A constant list of integers."""
        value = self.graph.constant(name)
        if value is None or value.dtype != np.int64:
            return None
        return [int(item) for item in value.reshape(-1)]

    def note_shape(self, node: Node) -> None:
        """The trailing shape of rows that come from an operation which is not run here."""
        shape: Shape | None = None
        axes: Axes | None = None
        if node.kind == "Gather" and node.attributes.get("axis", 0) == 0:
            table, port = self.graph.constant(node.inputs[0]), self._inputs.get(node.inputs[1])
            rows = port is not None and len(port.dims) == 2 and not any(isinstance(d, int) for d in port.dims)
            if table is None or table.ndim != 2 or table.dtype != np.float32 or port is None or not rows:
                return
            shape, axes = _item(table.shape[1:]), _axes(port)
        elif node.kind == "streamssm.LogMel":
            filters = next(
                (c for c in map(self.graph.constant, node.inputs) if c is not None and c.ndim == 2), None
            )
            past = self._inputs.get(node.inputs[-1])
            if filters is not None and filters.dtype == np.float32 and past is not None:
                shape, axes = _item(filters.shape[1:]), (_axes(past)[0], (node.outputs[0], 1))
        elif node.kind in _KEEPS_SHAPE or self._with_constant(node):
            shape, axes = self.rows(node.inputs[0]), self.axes.get(node.inputs[0])
        if shape is not None and axes is not None:
            self.shapes[node.outputs[0]], self.axes[node.outputs[0]] = shape, axes

    def _with_constant(self, node: Node) -> bool:
        """Whether an operation of two values takes a constant that adds nothing to the first one's shape."""
        if node.kind not in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min") or len(node.inputs) != 2:
            return False
        shape, constant = self.rows(node.inputs[0]), self.graph.constant(node.inputs[1])
        if shape is None or constant is None or constant.ndim > len(shape):
            return False
        pairs = zip(reversed(constant.shape), reversed(shape), strict=False)
        return all(size in (1, have) for size, have in pairs)

    def keeps_items(self, name: str, x: str) -> Shape | None:
        """The trailing shape if ``name`` is a shape [batch, items, ...] that leaves the items of the
        rows ``x`` what they are."""
        sizes = self._sizes(name)
        if sizes is None or len(sizes) < 3 or sizes[0] != self.axes[x][0]:
            return None
        trailing = _item(sizes[2:])
        return trailing if trailing is not None and prod(trailing) == prod(self.shapes[x]) else None

    def _sizes(self, name: str) -> list[int | str | None] | None:
        """A shape that the graph computes: numbers, names of dimensions, None for the unknown."""
        constant = self.integers(name)
        if constant is not None:
            return list(constant)
        node = self.graph.producers.get(name)
        if node is None:
            return None
        if node.kind == "Concat":
            parts = [self._sizes(part) for part in node.inputs]
            known = [part for part in parts if part is not None]
            return [size for part in known for size in part] if len(known) == len(parts) else None
        if node.kind == "Shape":
            start, end = node.attributes.get("start", 0), node.attributes.get("end")
            port = self._inputs.get(node.inputs[0])
            if port is not None and isinstance(start, int) and (end is None or isinstance(end, int)):
                return list(port.dims[start:end])
            return [None] if isinstance(start, int) and isinstance(end, int) and end - start == 1 else None
        return None


def _item(dims: Sequence[int | str | None]) -> Shape | None:
    """The shape of an item that can be run here: fixed, not empty, of few dimensions."""
    sizes = tuple(size for size in dims if isinstance(size, int) and size > 0)
    return sizes if len(sizes) == len(dims) <= _MAX_TRAILING else None


def _axes(port: Port) -> Axes:
    """What is known of a value's B and T: see :attr:`Values.axes`."""
    batch, items = (size or (port.name, at) for at, size in enumerate((*port.dims, None)[:2]))
    return batch, items
