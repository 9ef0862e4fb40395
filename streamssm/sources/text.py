"""Any bytes, for models whose tokens are the 256 byte values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Array, Request, Source, check_declared_rate, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream

BYTE_VALUES = 256


class TextSource(Source):
    """Every byte is an item; UTF-8 needs no decoding and may be split anywhere."""

    def __init__(self, name: str, stream: ByteStream, total: int | None = None):
        self.name, self.total = name, total
        self._stream = stream

    def read(self, count: int) -> Array:
        """The next bytes as int64."""
        return np.frombuffer(self._stream.read(1, count), np.uint8).astype(np.int64)

    def close(self) -> None:
        """Close the byte stream."""
        self._stream.close()


def takes_bytes(request: Request) -> bool:
    """Whether the model's tokens are byte values."""
    wanted = request.input
    return wanted.kind == "tokens" and wanted.vocabulary == BYTE_VALUES and wanted.shape == ()


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """Bytes from a pipe.

    Raises:
        SourceError: the model's vocabulary is not the 256 byte values.
    """
    if not takes_bytes(request):
        raise SourceError(
            f"{name}: bytes need a model of {BYTE_VALUES} tokens, this one takes {request.input.kind}"
            + (f" of {request.input.vocabulary}" if request.input.vocabulary else "")
            + "; use .npy or .csv"
        )
    check_declared_rate(name, request)
    return TextSource(name, stream)


def open_file(path: Path, request: Request) -> Source:
    """The bytes of a file."""
    size = check_path(path).stat().st_size
    stream = ByteStream(path.open("rb"))
    with closed_on_error(stream):
        source = open_stream(str(path), stream, request)
    source.total = size if path.is_file() else None
    return source
