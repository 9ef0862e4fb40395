"""What the tokens of a model stand for: bytes, nucleotides, or the entries of a tokenizer.

An alphabet makes encoders, which turn the bytes of a text into tokens however they are cut, and
decoders, which turn tokens into text one by one.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from streamssm.errors import InputError, ModelFileError

if TYPE_CHECKING:
    from streamssm.manifest import Input
    from streamssm.onnx_file import ModelFile

BYTE_VALUES = 256
NUCLEOTIDES = "ACGTN"
WHITE = " \t\r\n\v\f"


class Piece(NamedTuple):
    """A token, the characters of the text that it covers and no token before it does, and their bytes."""

    token: int
    text: str
    size: int


class Encoder(Protocol):
    """One text on its way to tokens."""

    def feed(self, data: bytes) -> None:
        """Give it more bytes; InputError if they are no text of this alphabet."""

    def end(self, closing: bool = True) -> None:
        """The text is complete; without ``closing`` nothing is put after it."""

    def take(self, count: int) -> list[Piece]:
        """The next tokens, at most ``count``."""

    def state(self) -> dict[str, Any]:
        """All that is held, as plain data."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""


class Decoder(Protocol):
    """Tokens on their way to text."""

    def add(self, token: int) -> str:
        """The text that becomes known by this token."""

    def end(self) -> str:
        """What was held back."""

    def state(self) -> dict[str, Any]:
        """What is held back and what it depends on, as plain data."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""


class Alphabet(Protocol):
    """What tokens stand for."""

    name: str

    def known(self, token: int) -> bool:
        """Whether the token stands for anything."""

    def encoder(self) -> Encoder:
        """A new text."""

    def decoder(self, context: Sequence[int] = ()) -> Decoder:
        """Tokens to text, after the tokens ``context``."""


def open_alphabet(file: ModelFile) -> Alphabet | None:
    """The alphabet that a model file says, or that its 256 tokens suggest; None if there is none.

    Raises:
        ModelFileError: the tokenizer is missing or damaged.
        SourceError: the library for it is not installed.
    """
    spec = file.manifest.input
    if spec.alphabet == "tokenizer":
        if file.tokenizer is None:
            raise ModelFileError(f"{file.path} names a tokenizer and holds none; export it again")
        from streamssm.tokenizer.library import TextTokenizer
        from streamssm.tokenizer.packed import unpack

        return TextTokenizer(unpack(file.tokenizer))
    if spec.alphabet == "nucleotides":
        return Nucleotides(spec.vocabulary or 0)
    return Bytes() if has_bytes(spec) else None


def has_bytes(spec: Input) -> bool:
    """Whether the tokens are byte values: the file says so, or there are 256 and it says nothing."""
    if spec.kind != "tokens" or spec.shape != ():
        return False
    return spec.alphabet == "bytes" or (spec.alphabet == "" and spec.vocabulary == BYTE_VALUES)


class Bytes:
    """Every byte is a token."""

    name = "bytes"

    def known(self, token: int) -> bool:
        """Whether it is a byte value."""
        return 0 <= token < BYTE_VALUES

    def encoder(self) -> Encoder:
        """A new text, which may be anything."""
        return _ByteEncoder()

    def decoder(self, context: Sequence[int] = ()) -> Decoder:
        """Bytes to the characters that they complete."""
        decoder = _ByteDecoder()
        for token in context:
            decoder.add(token)
        return decoder


class _ByteDecoder:
    """A character comes with its last byte; what is not UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.utf8.decode(bytes((token,))) if 0 <= token < BYTE_VALUES else ""

    def end(self) -> str:
        return self.utf8.decode(b"", final=True)

    def state(self) -> dict[str, Any]:
        return {"half": self.utf8.getstate()[0].hex()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.utf8.setstate((bytes.fromhex(state["half"]), 0))


class _ByteEncoder:
    def __init__(self) -> None:
        self._decoder = _ByteDecoder()
        self._ready: deque[Piece] = deque()

    def feed(self, data: bytes) -> None:
        self._ready.extend(Piece(byte, self._decoder.add(byte), 1) for byte in data)

    def end(self, closing: bool = True) -> None:
        """Nothing waits for the end: a half character has its tokens, and no text."""

    def take(self, count: int) -> list[Piece]:
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def state(self) -> dict[str, Any]:
        return self._decoder.state() | {"ready": [list(piece) for piece in self._ready]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._decoder.restore(state)
        self._ready = deque(Piece(*piece) for piece in state["ready"])


class Nucleotides:
    """A, C, G, T and N as 0 to 4, in either case; U is T, and a letter for one of several is N.

    White space is skipped. A model of 4 tokens has no N.
    """

    name = "nucleotides"

    def __init__(self, vocabulary: int):
        self.letters = NUCLEOTIDES[:vocabulary]

    def known(self, token: int) -> bool:
        """Whether it is a letter."""
        return 0 <= token < len(self.letters)

    def encoder(self) -> Encoder:
        """A new sequence."""
        return _NucleotideEncoder(self.letters)

    def decoder(self, context: Sequence[int] = ()) -> Decoder:
        """Tokens to letters."""
        return _NucleotideDecoder(self.letters)


class _NucleotideDecoder:
    def __init__(self, letters: str):
        self._letters = letters

    def add(self, token: int) -> str:
        return self._letters[token] if 0 <= token < len(self._letters) else ""

    def end(self) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing is held back."""


class _NucleotideEncoder:
    _AMBIGUOUS = "NRYSWKMBDHV"

    def __init__(self, letters: str):
        self._tokens = {letter: token for token, letter in enumerate(letters)}
        self._tokens["U"] = self._tokens["T"]
        if "N" in self._tokens:
            self._tokens |= dict.fromkeys(self._AMBIGUOUS, self._tokens["N"])
        self._taken = 0
        self._ready: deque[Piece] = deque()

    def feed(self, data: bytes) -> None:
        for place, letter in enumerate(data.decode("latin-1"), self._taken):
            if letter not in WHITE:
                self._ready.append(Piece(self._token(letter, place), letter, 1))
        self._taken += len(data)

    def _token(self, letter: str, place: int) -> int:
        token = self._tokens.get(letter.upper())
        if token is None:
            remedy = "FASTA is read with --input-format fasta" if letter == ">" else "correct or mask it"
            raise InputError(
                f"byte {place} of the sequence is {letter!r}; this model reads {', '.join(self._tokens)}; "
                f"{remedy}"
            )
        return token

    def end(self, closing: bool = True) -> None:
        """Every letter is a token at once."""

    def take(self, count: int) -> list[Piece]:
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def state(self) -> dict[str, Any]:
        return {"taken": self._taken, "ready": [list(piece) for piece in self._ready]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._taken, self._ready = state["taken"], deque(Piece(*piece) for piece in state["ready"])
