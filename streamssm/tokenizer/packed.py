"""A tokenizer.json as text for a file's metadata: compressed, then base64."""

from __future__ import annotations

import base64
import binascii
import zlib

from streamssm.errors import ModelFileError

#: the largest tokenizer.json that is unpacked; those of today's models have at most 35 MB
LARGEST = 1 << 28


def pack(data: bytes) -> str:
    """The metadata's value."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(value: bytes) -> bytes:
    """The tokenizer.json.

    Raises:
        ModelFileError: the value is damaged, or would take too much memory.
    """
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(value, validate=True), LARGEST)
    except (binascii.Error, zlib.error) as error:
        raise ModelFileError(f"the tokenizer in the file is damaged ({error}); export it again") from error
    if not unpacker.eof:
        raise ModelFileError(f"the tokenizer in the file is cut short, or larger than {LARGEST} bytes")
    return data
