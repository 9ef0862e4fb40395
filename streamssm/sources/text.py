"""Text for models of tokens: bytes, nucleotides, or what the tokenizer in the model file makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamssm.alphabet import BYTE_VALUES, Encoder, has_bytes
from streamssm.errors import InputError, SourceError
from streamssm.sources.base import Array, Request, Source, check_declared_rate, check_path, closed_on_error
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.gz import SUFFIXES, open_bytes

_READ = 1024  # bytes at a time: after a signal, what has been read is still worked on


class ByteSource(Source):
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


class TextSource(Source):
    """Tokens of a text, as soon as they are known; ``taken`` says what the latest ones stand for.

    At the end of the bytes the encoder may still hold some text back: whether that is the end of the text
    is not known here. Waiting and encoding are two calls, so that a signal loses nothing.
    """

    def __init__(self, name: str, stream: ByteStream, encoder: Encoder):
        self.name = name
        self._stream, self._encoder = stream, encoder
        self._data = b""
        self.ended = False

    def read(self, count: int) -> Array:
        """The next tokens."""
        while not len(tokens := self.ready(count)) and not self.ended:
            self.wait()
        return tokens

    def wait(self) -> None:
        """Wait for bytes, or the end."""
        self._data = self._stream.read(1, _READ)
        self.ended = not self._data

    def ready(self, count: int) -> Array:
        """The tokens that are known, at most ``count``.

        Raises:
            SourceError: the bytes are no text of the model's alphabet.
        """
        data, self._data = self._data, b""
        try:
            if data:
                self._encoder.feed(data)
        except InputError as error:
            raise SourceError(f"{self.name}: {error}") from error
        self.taken = self._encoder.take(count)
        return np.array([piece.token for piece in self.taken], np.int64)

    def close(self) -> None:
        """Close the byte stream."""
        self._stream.close()


def takes_text(request: Request) -> bool:
    """Whether text can feed the model."""
    return request.encoder is not None or has_bytes(request.input)


def open_stream(name: str, stream: ByteStream, request: Request) -> Source:
    """Text from a pipe.

    Raises:
        SourceError: the model does not say what its tokens stand for.
    """
    if not takes_text(request):
        size = f" of {request.input.vocabulary}" if request.input.vocabulary else ""
        raise SourceError(
            f"{name}: bytes need a model of {BYTE_VALUES} tokens, this one takes {request.input.kind}{size} "
            "and was exported without an alphabet or a tokenizer; use .npy or .csv"
        )
    check_declared_rate(name, request)
    if request.encoder is None:
        return ByteSource(name, stream)
    return TextSource(name, stream, request.encoder)


def open_file(path: Path, request: Request) -> Source:
    """The text of a file."""
    size = check_path(path).stat().st_size
    stream = open_bytes(path)
    with closed_on_error(stream):
        source = open_stream(str(path), stream, request)
    if path.is_file():
        source.replayable = True
        plain = isinstance(source, ByteSource) and path.suffix.lower() not in SUFFIXES
        source.total = size if plain else None
    return source
