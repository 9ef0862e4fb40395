"""What is known of a graph's values while its operations are recognised.

Values are rows: ``[B, T, ...]`` with a trailing shape that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.native.graph import Graph, Node
from streamssm.native.program import Assembler

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Emit = Callable[[Assembler], None]

#: operations that are not run here and give rows of the shape of their first input
_KEEPS_SHAPE = {"streamssm.SlidingWindowAttention", "LayerNormalization", "Log", "Sqrt", "Erf", "Gelu"}


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
        self.batch = {port.dims[0] for port in graph.inputs if port.dims and isinstance(port.dims[0], str)}
        self._inputs = {port.name: port for port in graph.inputs}
        for port in (*graph.inputs, *graph.inner):
            trailing = tuple(size for size in port.dims[2:] if isinstance(size, int))
            rows = len(port.dims) >= 3 and not any(isinstance(size, int) for size in port.dims[:2])
            if rows and len(trailing) == len(port.dims) - 2:
                self.shapes[port.name] = trailing

    def rows(self, name: str, shape: Shape | None = None) -> Shape | None:
        """The trailing shape of a value, if it is known, and ``shape`` where that is given."""
        known = self.shapes.get(name)
        return known if shape is None or known == shape else None

    def is_input(self, name: str) -> bool:
        """Whether ``name`` comes from outside the graph, as states do."""
        return name in self._inputs

    def only(self, name: str, op: str) -> Node | None:
        """The one node that reads ``name``, if it is an ``op`` and ``name`` is no result."""
        readers = self.graph.consumers.get(name, [])
        if len(readers) != 1 or name in self.graph.results or readers[0].kind != op:
            return None
        return readers[0]

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element."""
        value = self.graph.constant(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

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
        if node.kind == "Gather" and node.attributes.get("axis", 0) == 0:
            table, port = self.graph.constant(node.inputs[0]), self._inputs.get(node.inputs[1])
            if table is not None and table.ndim == 2 and port is not None and len(port.dims) == 2:
                shape = (table.shape[1],)
        elif node.kind == "streamssm.LogMel":
            filters = next(
                (c for c in map(self.graph.constant, node.inputs) if c is not None and c.ndim == 2), None
            )
            shape = None if filters is None else (filters.shape[1],)
        elif node.kind in _KEEPS_SHAPE:
            shape = self.rows(node.inputs[0])
        if shape is not None:
            self.shapes[node.outputs[0]] = shape

    def keeps_items(self, name: str, width: int) -> Shape | None:
        """The trailing shape if ``name`` is a shape [batch, items, ...] of ``width`` numbers an item."""
        sizes = self._sizes(name)
        if sizes is None or len(sizes) < 3 or sizes[0] not in self.batch:
            return None
        trailing = tuple(size for size in sizes[2:] if isinstance(size, int) and size > 0)
        return trailing if len(trailing) == len(sizes) - 2 and prod(trailing) == width else None

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
