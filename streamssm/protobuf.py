"""The wire format of protobuf: fields read in place, and written.

An ONNX file is one protobuf message. It is never decoded as a whole: a reader steps over what
it does not need, so a file of any size costs only what is looked at.
Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Buffer = bytes | mmap.mmap
Span = tuple[int, int]


class MalformedError(Exception):
    """Not protobuf, or cut short."""


def release(data: Buffer) -> None:
    """Let go of the memory to which a file has been mapped so far; it is read anew if need be."""
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)


def fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of the message in ``data[at:end]``: number, wire type, start and end of the value."""
    while at < end:
        key, start = varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 2:
            length, start = varint(data, start, end)
            stop = start + length
        elif wire == 0:
            stop = varint(data, start, end)[1]
        elif wire in (1, 5):
            stop = start + (8 if wire == 1 else 4)
        else:
            raise MalformedError(f"byte {at} is no field of a protobuf message")
        if number == 0:
            raise MalformedError(f"byte {at} is no field of a protobuf message")
        if stop > end:
            raise MalformedError(f"the field at byte {at} needs {stop - start} bytes, {end - start} are left")
        yield number, wire, start, stop
        at = stop


def varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """The variable-length integer at ``at`` and the position after it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedError(f"the number before byte {at} does not end")


def text(data: Buffer, span: Span) -> str:
    """The string in ``span``."""
    return data[span[0] : span[1]].decode()


def last(data: Buffer, span: Span, number: int) -> Span:
    """Where the last message or string in field ``number`` lies; an empty span if there is none."""
    found = [(start, stop) for at, wire, start, stop in fields(data, *span) if at == number and wire == 2]
    return found[-1] if found else (0, 0)


def string(data: Buffer, span: Span, number: int) -> str:
    """The string in field ``number`` of the message in ``span``."""
    return text(data, last(data, span, number))


def integer(data: Buffer, at: int) -> int:
    """The signed number at ``at``."""
    value = varint(data, at, len(data))[0]
    return value - (1 << 64) if value >= 1 << 63 else value


def integers(data: Buffer, wire: int, start: int, stop: int) -> list[int]:
    """The values of a repeated number: one, or many packed together."""
    if wire == 0:
        return [integer(data, start)]
    values = []
    while start < stop:
        values.append(integer(data, start))
        start = varint(data, start, stop)[1]
    return values


def encode_varint(value: int) -> bytes:
    """A variable-length integer; negative ones as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_number(number: int, value: int) -> bytes:
    """Field ``number`` with an integer."""
    return encode_varint(number << 3) + encode_varint(value)


def encode_message(number: int, content: bytes) -> bytes:
    """Field ``number`` with a message, a string or bytes."""
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def copied(data: Buffer, number: int, wire: int, start: int, stop: int) -> bytes:
    """A field as :func:`fields` has found it, written again."""
    content = bytes(data[start:stop])
    return encode_message(number, content) if wire == 2 else encode_varint(number << 3 | wire) + content
