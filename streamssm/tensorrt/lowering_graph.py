"""What a lowering is written with: nodes that name themselves, and what is known of the graph so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from streamssm.errors import ExportError

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]
#: what a node is given as an input: the name of a tensor, or the values of a constant
Operand = str | Array | float | Sequence[int]

#: constants of at most so many values are compared with others before they are stored
_SMALL = 64


class Builder:
    """The nodes and constants of a graph in the making.

    Calling it adds a node of a standard operator and returns the name of its output; constants may stand
    where names do: a float is float32, a list of integers int64.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._taken = set(taken)
        self._seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def __call__(self, op: str, *inputs: Operand, out: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, ``out`` if it has a name already."""
        return self.several(op, inputs, [out or self.name(op)], **attributes)[0]

    def several(
        self, op: str, inputs: Sequence[Operand], outputs: int | Sequence[str], **attributes: Any
    ) -> list[str]:
        """A node with several outputs, their names or how many."""
        names = [self.name(op) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        operands = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(op, operands, names, **attributes))
        return names

    def constant(self, value: Array | float | Sequence[int]) -> str:
        """The name of a constant of these values."""
        array = _array(value)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= _SMALL else None
        if key is not None and key in self._seen:
            return self._seen[key]
        name = self.name("constant")
        self.constants[name] = array
        if key is not None:
            self._seen[key] = name
        return name

    def keep(self, node: onnx.NodeProto) -> None:
        """Add a node as it is."""
        self.nodes.append(node)

    def name(self, word: str) -> str:
        """A name that nothing has yet."""
        while True:
            self._count += 1
            name = f"{word}.{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name


def _array(value: Array | float | Sequence[int]) -> Array:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    return np.asarray(value, np.float32 if isinstance(value, float) else np.int64)


class Facts:
    """Shapes and constant values of a graph's tensors. A size that is not fixed is None."""

    def __init__(self, shapes: Mapping[str, Shape], values: Mapping[str, onnx.TensorProto]) -> None:
        self._shapes, self._values = dict(shapes), dict(values)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor.

        Raises:
            ExportError: nothing is known about it.
        """
        if name not in self._shapes:
            raise ExportError(f"the shape of tensor {name!r} cannot be told; export the model again")
        return self._shapes[name]

    def sizes(self, name: str, *axes: int) -> tuple[int, ...]:
        """Sizes of a tensor along axes that are fixed.

        Raises:
            ExportError: one is not.
        """
        shape = self.shape(name)
        found = [shape[axis] if axis < len(shape) else None for axis in axes]
        if None in found:
            raise ExportError(
                f"tensor {name!r} of shape {list(shape)} has no fixed size along axes {list(axes)}, without "
                "which its operator has no native form; use --plugins on"
            )
        return tuple(size for size in found if size is not None)

    def value(self, name: str) -> Array | None:
        """The values of a constant; None for what is computed."""
        tensor = self._values.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant(self, name: str, what: str) -> Array:
        """The values of what must be a constant.

        Raises:
            ExportError: it is computed.
        """
        value = self.value(name)
        if value is None:
            raise ExportError(f"{what} {name!r} is computed from the input; it must be a constant")
        return value


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def names_in(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name of a tensor in a graph, inner graphs included."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from names_in(attribute.g)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, inside of inner graphs too."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from names_in(attribute.g)


def as_initializers(constants: Mapping[str, Array]) -> list[onnx.TensorProto]:
    """Constants as they are stored in a graph."""
    return [numpy_helper.from_array(value, name) for name, value in constants.items()]
