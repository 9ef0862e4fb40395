"""What a rewrite adds to a model, at the level of protobuf: nodes, whole small models, and references
to tensors that stay where they are."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from streamssm.external import ALIGNMENT, Placed, read_placed
from streamssm.protobuf import (
    Buffer,
    Span,
    copied,
    encode_message,
    encode_number,
    encode_varint,
    fields,
    last,
)

if TYPE_CHECKING:
    from streamssm.native.graph import Attribute, Node

_IR_VERSION = 10
#: tensors of so many bytes stay where they are
LARGE = 1 << 20

#: fields of ModelProto and GraphProto
_MODEL_OPSET, _MODEL_GRAPH = 8, 7
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 11, 12


def referred(data: Buffer, span: Span, name: str, file: str) -> bytes:
    """A TensorProto as it is, or, if it is large, aligned, and in a file of this name, one that
    refers to the place of its values there."""
    raw = last(data, span, 9)
    size = raw[1] - raw[0]
    placed = read_placed(data, span)
    if placed is None and (not file or size < LARGE or raw[0] % ALIGNMENT):
        return bytes(data[slice(*span)])
    where = Placed(name, file, raw[0], size) if placed is None else placed
    body = bytearray()
    for number, wire, start, stop in fields(data, *span):
        if number in (1, 2):
            body += copied(data, number, wire, start, stop)
    entries = {"location": where.location, "offset": str(where.offset), "length": str(where.length)}
    body += encode_message(8, name.encode())
    for key, value in entries.items():
        body += encode_message(13, encode_message(1, key.encode()) + encode_message(2, value.encode()))
    return bytes(body + encode_number(14, 1))


def encode_node(node: Node) -> bytes:
    """A node that a rewrite has made, as a NodeProto."""
    strings = [*((1, name) for name in node.inputs), *((2, name) for name in node.outputs)]
    strings += [(3, node.outputs[0]), (4, node.op), (7, node.domain)]
    body = b"".join(encode_message(number, value.encode()) for number, value in strings)
    return body + b"".join(encode_message(5, _attribute(*pair)) for pair in node.attributes.items())


def encode_model(
    nodes: Iterable[Node],
    inputs: Mapping[str, Sequence[int | None]],
    outputs: Mapping[str, Sequence[int | None]],
    opsets: Mapping[str, int],
) -> bytes:
    """A whole model of new nodes; inputs and outputs are float32, by name and shape."""
    body = b"".join(encode_message(_GRAPH_NODE, encode_node(node)) for node in nodes) + encode_message(
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


def _attribute(name: str, value: Attribute) -> bytes:
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
