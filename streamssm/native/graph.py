"""A model's graph, read and rewritten at the level of protobuf, without the onnx package.

Only what a rewrite needs is decoded: nodes, the shapes of inputs, the tensors that are asked for.
Everything else is copied as the bytes it is. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm.external import read_placed
from streamssm.native.encoding import LARGE, encode_node, referred
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
    release,
    string,
    text,
)

if TYPE_CHECKING:
    from streamssm.onnx_file import ModelFile

Array = npt.NDArray[Any]
Attribute = int | float | bytes | list[int] | Array

#: element types of ONNX, by number
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}


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
        return tuple(name for name in self.inputs + self.captured if name)

    @property
    def makes(self) -> tuple[str, ...]:
        """Outputs that are not left out."""
        return tuple(name for name in self.outputs if name)

    @property
    def kind(self) -> str:
        """Operator with its domain, such as ``streamssm.SelectiveScan`` or ``MatMul``."""
        return f"{self.domain}.{self.op}" if self.domain not in ("", "ai.onnx") else self.op


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; a dimension without a fixed size is its name, or None.
    ``dtype`` is ONNX's number of the element type."""

    name: str
    dims: tuple[int | str | None, ...]
    dtype: int = 0


class Graph:
    """The main graph of a serialised model.

    ``side`` holds the content of the files beside it by name, which its tensors may lie in; ``name``
    is that of its own file, if it may be read by name again: see :meth:`rewritten`.
    """

    def __init__(self, data: Buffer, side: Mapping[str, Buffer] | None = None, name: str = "") -> None:
        self._data, self._side, self._name = data, dict(side or {}), name
        start, stop = last(data, (0, len(data)), _MODEL_GRAPH)
        self._parts = list(fields(data, start, stop))

    @cached_property
    def domains(self) -> frozenset[str]:
        """The operator domains that the model imports."""
        imports = (part for part in fields(self._data, 0, len(self._data)) if part[0] == _MODEL_OPSET)
        return frozenset(string(self._data, (start, stop), 1) for _, _, start, stop in imports)

    @cached_property
    def large(self) -> bool:
        """Whether it has tensors that stay in a file when it is rewritten."""
        large = any(stop - start >= LARGE for start, stop in self._initializers.values())
        return (large and bool(self._name)) or bool(self._side)

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
            stored = None if span is None else _tensor(self._data, span, self._side)
            self._cache[name] = stored if span is not None or node is None else self._folded(node)
        return self._cache[name]

    def dims(self, name: str) -> tuple[int, ...] | None:
        """The shape of the tensor stored under ``name``, or computed from stored ones, without reading
        what is stored; None if there is none."""
        span = self._initializers.get(name)
        if span is not None:
            parts = (part for part in fields(self._data, *span) if part[0] == 1)
            return tuple(size for _, *part in parts for size in integers(self._data, *part))
        found = self.constant(name)
        return None if found is None else found.shape

    def _folded(self, node: Node) -> Array | None:
        """The result of an operation on constants, as exporters leave it to be folded at load."""
        fold = _FOLDS.get(node.kind)
        values = [self.constant(name) for name in node.inputs] if fold else []
        known = [value for value in values if value is not None]
        return fold(node, *known) if fold and known and len(known) == len(values) else None

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes a value."""
        return {name: node for node in self.nodes for name in node.makes}

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

    def release(self) -> None:
        """Let go of the memory into which files were mapped so far; they are read anew if need be."""
        for data in (self._data, *self._side.values()):
            release(data)

    def rewritten(self, nodes: Sequence[Node], domains: Iterable[str]) -> bytes:
        """The model with other nodes, and ``domains`` beside those it has used so far. Tensors
        that no node reads are left out, unless they are inputs (with this default) or outputs too.

        Where the model's file has a name, large tensors stay in it: whoever opens the result maps
        them from there, which spares two copies of each.
        """
        used = {name for node in nodes for name in node.reads} | self.results
        used |= {port.name for port in self.inputs}
        body = bytearray()
        for node in nodes:
            body += encode_message(_GRAPH_NODE, node.raw if node.raw is not None else encode_node(node))
        for name, span in self._initializers.items():
            if name in used:
                body += encode_message(_GRAPH_INITIALIZER, referred(self._data, span, name, self._name))
        for number, wire, start, stop in self._parts:
            if number not in (_GRAPH_NODE, _GRAPH_INITIALIZER):
                body += copied(self._data, number, wire, start, stop)
        model = bytearray()
        for number, wire, start, stop in fields(self._data, 0, len(self._data)):
            if number != _MODEL_GRAPH:
                model += copied(self._data, number, wire, start, stop)
        for domain in domains:
            model += encode_message(_MODEL_OPSET, encode_message(1, domain.encode()) + encode_number(2, 1))
        model += encode_varint(_MODEL_GRAPH << 3 | 2) + encode_varint(len(body))
        model += body
        return bytes(model)

    def alive(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of ``nodes``, which are in order, that a result depends on."""
        wanted, alive = set(self.results), []
        for node in reversed(nodes):
            if wanted.intersection(node.makes):
                alive.append(node)
                wanted.update(node.reads)
        return alive[::-1]


def graph_of(file: ModelFile, mapped: bool) -> Graph:
    """The graph of a model file; where ``mapped``, what it rewrites refers to the file."""
    path = Path(os.path.realpath(file.path))
    with path.open("rb") as content:
        # not closed by hand: it goes with the last array that looks into it
        data = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    return Graph(data, {name: side.data for name, side in file.side.items()}, path.name if mapped else "")


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
    tensor = last(data, last(data, span, 2), 1)
    dtype = next((integer(data, start) for number, _, start, _ in fields(data, *tensor) if number == 1), 0)
    shape = last(data, tensor, 2)
    dims: list[int | str | None] = []
    for number, _, start, stop in fields(data, *shape):
        if number == 1:
            size: int | str | None = None
            for kind, _, first, end in fields(data, start, stop):
                size = integer(data, first) if kind == 1 else text(data, (first, end)) if kind == 2 else size
            dims.append(size)
    return Port(string(data, span, 1), tuple(dims), dtype)


def _tensor(data: Buffer, span: Span, side: Mapping[str, Buffer] | None = None) -> Array | None:
    """The value of a TensorProto, or None where it is not stored in a form that is read here."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, wire, start, stop in fields(data, *span):
        found.setdefault(number, []).append((wire, start, stop))
    dims = [size for part in found.get(1, []) for size in integers(data, *part)]
    kind = integer(data, found[2][-1][1]) if 2 in found else 0
    placed = read_placed(data, span) if 13 in found or 14 in found else None
    if kind not in DTYPES or (placed is not None and placed.location not in (side or {})):
        return None
    flat: Array
    item = np.dtype(DTYPES[kind]).itemsize
    if placed is not None:
        flat = np.frombuffer(
            (side or {})[placed.location], DTYPES[kind], placed.length // item, placed.offset
        )
    elif 9 in found:
        _, start, stop = found[9][-1]
        flat = np.frombuffer(data, DTYPES[kind], (stop - start) // item, start)
    elif 4 in found:
        flat = np.frombuffer(b"".join(data[start:stop] for _, start, stop in found[4]), np.float32)
    else:
        numbers = [*found.get(5, []), *found.get(7, [])]
        values = [value for part in numbers for value in integers(data, *part)]
        # half floats are listed as the integers of their bits
        flat = np.array(values, np.uint16).view(np.float16) if kind == 10 else np.array(values, DTYPES[kind])
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


def _filled(node: Node, shape: Array) -> Array | None:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray):  # of a type unknown here
        return None
    return np.full(tuple(int(size) for size in shape), value)


_FOLDS: dict[str, Callable[..., Array | None]] = {
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "ConstantOfShape": _filled,
    "Exp": lambda _, value: np.exp(value),
    "Neg": lambda _, value: -value,
}
