"""A model's graph, read and rewritten at the level of protobuf, without the onnx package.

Only what a rewrite needs is decoded: nodes, the shapes of inputs, the tensors that are asked for.
Everything else is copied as the bytes it is. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.protobuf import (
    Buffer,
    Span,
    copied,
    encode_message,
    encode_number,
    encode_varint,
    fields,
    integer,
    integers,
    last,
    string,
    text,
)

Array = npt.NDArray[Any]
Attribute = int | float | bytes | list[int] | Array

#: element types of ONNX, by number
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}

_IR_VERSION = 10

#: fields of ModelProto, GraphProto, NodeProto and AttributeProto that hold what a rewrite changes
_MODEL_OPSET, _MODEL_GRAPH = 8, 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE = 1, 5, 11, 12, 13


@dataclass(frozen=True, eq=False)
class Node:
    """One operator call. ``raw`` is its message; None for a node that a rewrite has made.
    ``captured`` are the names that occur in its subgraphs."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    raw: bytes | None = None
    captured: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs, and what the node's subgraphs read from outside."""
        return self.inputs + self.captured

    @property
    def kind(self) -> str:
        """Operator with its domain, such as ``streamssm.SelectiveScan`` or ``MatMul``."""
        return f"{self.domain}.{self.op}" if self.domain not in ("", "ai.onnx") else self.op


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; a dimension without a fixed size is its name, or None."""

    name: str
    dims: tuple[int | str | None, ...]


class Graph:
    """The main graph of a serialised model."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        start, stop = last(data, (0, len(data)), _MODEL_GRAPH)
        self._parts = list(fields(data, start, stop))

    def _spans(self, number: int) -> Iterator[Span]:
        return ((start, stop) for at, _, start, stop in self._parts if at == number)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in an order in which each comes after what it reads."""
        return tuple(_node(self._data, span) for span in self._spans(_GRAPH_NODE))

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """What the graph takes."""
        return tuple(_port(self._data, span) for span in self._spans(_GRAPH_INPUT))

    @cached_property
    def inner(self) -> tuple[Port, ...]:
        """The values between nodes whose shapes the file states."""
        return tuple(_port(self._data, span) for span in self._spans(_GRAPH_VALUE))

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        """What the graph gives."""
        return tuple(_port(self._data, span) for span in self._spans(_GRAPH_OUTPUT))

    @cached_property
    def _initializers(self) -> dict[str, Span]:
        return {string(self._data, span, 8): span for span in self._spans(_GRAPH_INITIALIZER)}

    @cached_property
    def _cache(self) -> dict[str, Array | None]:
        return {}

    def constant(self, name: str) -> Array | None:
        """The tensor stored under ``name``, or computed from stored ones; read-only. None if there
        is none, or of a type unknown here."""
        if name not in self._cache:
            span, node = self._initializers.get(name), self.producers.get(name)
            stored = None if span is None else _tensor(self._data, span)
            self._cache[name] = stored if span is not None or node is None else self._folded(node)
        return self._cache[name]

    def _folded(self, node: Node) -> Array | None:
        """The result of an operation on constants, as exporters leave it to be folded at load."""
        fold = _FOLDS.get(node.kind)
        values = [self.constant(name) for name in node.inputs] if fold else []
        known = [value for value in values if value is not None]
        return fold(node, *known) if fold and known and len(known) == len(values) else None

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes a value."""
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read a value, in order, once for each time they read it."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                table.setdefault(name, []).append(node)
        return table

    @cached_property
    def results(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(port.name for port in self.outputs)

    def rewritten(self, nodes: Sequence[Node], domains: Iterable[str]) -> bytes:
        """The model with other nodes, and ``domains`` beside those it has used so far. Tensors
        that no node reads are left out."""
        used = {name for node in nodes for name in node.reads}
        body = bytearray()
        for node in nodes:
            body += encode_message(_GRAPH_NODE, node.raw if node.raw is not None else _encode_node(node))
        for name, span in self._initializers.items():
            if name in used:
                body += encode_message(_GRAPH_INITIALIZER, bytes(self._data[slice(*span)]))
        for number, wire, start, stop in self._parts:
            if number not in (_GRAPH_NODE, _GRAPH_INITIALIZER):
                body += copied(self._data, number, wire, start, stop)
        model = bytearray()
        for number, wire, start, stop in fields(self._data, 0, len(self._data)):
            if number != _MODEL_GRAPH:
                model += copied(self._data, number, wire, start, stop)
        for domain in domains:
            model += encode_message(_MODEL_OPSET, encode_message(1, domain.encode()) + encode_number(2, 1))
        return bytes(model + encode_message(_MODEL_GRAPH, bytes(body)))

    def alive(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of ``nodes``, which are in order, that a result depends on."""
        wanted, alive = set(self.results), []
        for node in reversed(nodes):
            if wanted.intersection(node.outputs):
                alive.append(node)
                wanted.update(node.reads)
        return alive[::-1]


# Decoding.


def _node(data: Buffer, span: Span) -> Node:
    strings: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
    attributes: dict[str, Attribute] = {}
    captured: list[str] = []
    for number, _, start, stop in fields(data, *span):
        if number in strings:
            strings[number].append(text(data, (start, stop)))
        elif number == 5:
            captured += _names_in_attribute(data, (start, stop))
            name, value = _attribute(data, (start, stop))
            attributes[name] = value
    return Node(
        op="".join(strings[4]),
        domain="".join(strings[7]),
        inputs=tuple(strings[1]),
        outputs=tuple(strings[2]),
        attributes=attributes,
        raw=bytes(data[slice(*span)]),
        captured=tuple(captured),
    )


def _attribute(data: Buffer, span: Span) -> tuple[str, Attribute]:
    name, value, ints = "", None, []
    for number, wire, start, stop in fields(data, *span):
        if number == 1:
            name = text(data, (start, stop))
        elif number == 2:
            value = struct.unpack("<f", data[start:stop])[0]
        elif number == 3:
            value = integer(data, start)
        elif number == 4:
            value = bytes(data[start:stop])
        elif number == 5:
            value = _tensor(data, (start, stop))
        elif number == 8:
            ints += integers(data, wire, start, stop)
    return name, ints if value is None else value


def _port(data: Buffer, span: Span) -> Port:
    shape = last(data, last(data, last(data, span, 2), 1), 2)
    dims: list[int | str | None] = []
    for number, _, start, stop in fields(data, *shape):
        if number == 1:
            size: int | str | None = None
            for kind, _, first, end in fields(data, start, stop):
                size = integer(data, first) if kind == 1 else text(data, (first, end)) if kind == 2 else size
            dims.append(size)
    return Port(string(data, span, 1), tuple(dims))


def _tensor(data: Buffer, span: Span) -> Array | None:
    """The value of a TensorProto, or None where it is not stored in a form that is read here."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, wire, start, stop in fields(data, *span):
        found.setdefault(number, []).append((wire, start, stop))
    dims = [size for part in found.get(1, []) for size in integers(data, *part)]
    kind = integer(data, found[2][-1][1]) if 2 in found else 0
    if kind not in DTYPES or 13 in found:  # 13: stored in another file
        return None
    flat: Array
    if 9 in found:
        _, start, stop = found[9][-1]
        flat = np.frombuffer(data, DTYPES[kind], (stop - start) // np.dtype(DTYPES[kind]).itemsize, start)
    elif 4 in found:
        flat = np.frombuffer(b"".join(data[start:stop] for _, start, stop in found[4]), np.float32)
    else:
        numbers = [*found.get(5, []), *found.get(7, [])]
        flat = np.array([value for part in numbers for value in integers(data, *part)], DTYPES[kind])
    return flat.reshape(dims) if flat.size == math.prod(dims) else None


def _names_in(data: Buffer, span: Span) -> Iterator[str]:
    """Every name that a node of a graph, or of the graphs in it, reads."""
    for number, wire, start, stop in fields(data, *span):
        if wire == 2 and number == _GRAPH_NODE:
            for part, _, first, end in fields(data, start, stop):
                if part == 1:
                    yield text(data, (first, end))
                elif part == 5:
                    yield from _names_in_attribute(data, (first, end))


def _names_in_attribute(data: Buffer, span: Span) -> Iterator[str]:
    for number, wire, start, stop in fields(data, *span):
        if wire == 2 and number in (6, 11):
            yield from _names_in(data, (start, stop))


# Folding.


def _reshaped(_: Node, value: Array, shape: Array) -> Array | None:
    if not shape.size or shape.min() < 1 or shape.prod() != value.size:
        return None
    return value.reshape(tuple(int(size) for size in shape))


def _transposed(node: Node, value: Array) -> Array:
    order = node.attributes.get("perm")
    return value.transpose(order if isinstance(order, list) else None)


def _filled(node: Node, shape: Array) -> Array:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    return np.full(tuple(int(size) for size in shape), value)


_FOLDS: dict[str, Callable[..., Array | None]] = {
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "ConstantOfShape": _filled,
    "Exp": lambda _, value: np.exp(value),
    "Neg": lambda _, value: -value,
}


# Encoding.


def _encode_node(node: Node) -> bytes:
    strings = [*((1, name) for name in node.inputs), *((2, name) for name in node.outputs)]
    strings += [(3, node.outputs[0]), (4, node.op), (7, node.domain)]
    body = b"".join(encode_message(number, value.encode()) for number, value in strings)
    return body + b"".join(encode_message(5, _encode_attribute(*pair)) for pair in node.attributes.items())


def encode_model(
    nodes: Iterable[Node],
    inputs: Mapping[str, Sequence[int | None]],
    outputs: Mapping[str, Sequence[int | None]],
    opsets: Mapping[str, int],
) -> bytes:
    """A whole model of new nodes; inputs and outputs are float32, by name and shape."""
    body = b"".join(encode_message(_GRAPH_NODE, _encode_node(node)) for node in nodes) + encode_message(
        2, b"graph"
    )
    for number, ports in ((_GRAPH_INPUT, inputs), (_GRAPH_OUTPUT, outputs)):
        for name, dims in ports.items():
            shape = b"".join(
                encode_message(1, b"" if size is None else encode_number(1, size)) for size in dims
            )
            tensor = encode_number(1, 1) + encode_message(2, shape)
            body += encode_message(
                number, encode_message(1, name.encode()) + encode_message(2, encode_message(1, tensor))
            )
    imports = (
        encode_message(1, domain.encode()) + encode_number(2, version) for domain, version in opsets.items()
    )
    head = encode_number(1, _IR_VERSION) + b"".join(encode_message(_MODEL_OPSET, entry) for entry in imports)
    return head + encode_message(_MODEL_GRAPH, body)


def _encode_attribute(name: str, value: Attribute) -> bytes:
    """Integers, floats, strings and lists of integers: what new nodes need."""
    head = encode_message(1, name.encode())
    if isinstance(value, int):
        return head + encode_number(3, value) + encode_number(20, 2)
    if isinstance(value, float):
        return head + encode_varint(2 << 3 | 5) + struct.pack("<f", value) + encode_number(20, 1)
    if isinstance(value, bytes):
        return head + encode_message(4, value) + encode_number(20, 3)
    if isinstance(value, list):
        return head + b"".join(encode_number(8, item) for item in value) + encode_number(20, 7)
    raise TypeError(f"attribute {name}: {type(value).__name__} cannot be written")
