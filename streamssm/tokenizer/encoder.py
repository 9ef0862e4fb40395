"""Text to tokens as it comes: equal to tokenising the whole, for every cut of the bytes.

What has come is held back to the last place where it may be cut (``cuts.py``); the end settles the
rest. A tokenizer of which no such place is known is held back to the end, up to a limit.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamssm.alphabet import Piece
from streamssm.errors import InputError

if TYPE_CHECKING:
    from streamssm.tokenizer.library import TextTokenizer

#: the most characters that are held back
HELD = 1 << 24


class _Held(NamedTuple):
    """What has come and is not yet tokens."""

    data: bytes = b""  # not yet decoded: at most a part of a character, between calls
    text: str = ""
    context: str = ""  # the last character before the text, where the head of a text matters
    carry: str = ""  # characters before the text that no token covers; the next one's text starts so
    taken: int = 0  # bytes before ``data``
    begun: bool = False  # whether the tokens that precede every text are out


class TextEncoder:
    """One text, fed as bytes of UTF-8, cut anywhere."""

    def __init__(self, tokenizer: TextTokenizer, held: int = HELD):
        self._tokenizer, self._limit = tokenizer, held
        self._held = _Held()
        self._scanned = 0  # characters of the held text after which no cut was found
        self._ready: deque[Piece] = deque()

    def feed(self, data: bytes) -> None:
        """Give it more bytes.

        Raises:
            InputError: they are not UTF-8, or too much has to be held back.
        """
        self._held = self._held._replace(data=self._held.data + data)
        self._decode(final=False)
        text = self._held.text
        at = self._tokenizer.cuts.last(text, self._scanned)
        if at:
            self._advance(at)
        elif len(text) > self._limit:
            raise InputError(
                f"{len(text)} characters up to byte {self._held.taken} hold no place where this tokenizer "
                f"can be cut; at most {self._limit} are held back: give the model shorter texts, one a run"
            )
        # the last character waits for its neighbour, the one before it perhaps for what follows that
        self._scanned = max(0, len(self._held.text) - 2)

    def end(self, closing: bool = True) -> None:
        """The text is complete; with ``closing`` the tokens that follow every text come too.

        Raises:
            InputError: it ends in the middle of a character.
        """
        self._decode(final=True)
        self._advance(len(self._held.text))
        if closing:
            self._ready.extend(Piece(token, "", 0) for token in self._tokenizer.after)
        # without closing, what comes after is more of the same text
        self._held, self._scanned = _Held() if closing else self._held, 0

    def take(self, count: int) -> list[Piece]:
        """The next tokens, at most ``count``."""
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def state(self) -> dict[str, Any]:
        """All that is held, as plain data."""
        held = self._held._asdict() | {"data": self._held.data.hex()}
        return held | {"ready": [list(piece) for piece in self._ready]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        plain = dict(state)
        self._ready = deque(Piece(*piece) for piece in plain.pop("ready"))
        self._held = _Held(**plain | {"data": bytes.fromhex(plain["data"])})
        self._scanned = 0

    def _decode(self, final: bool) -> None:
        held = self._held
        try:
            text, used = codecs.utf_8_decode(held.data, "strict", final)
        except UnicodeDecodeError as error:
            place = held.taken + error.start
            raise InputError(
                f"byte {place} of the text is 0x{held.data[error.start]:02x}, which is not UTF-8 there "
                f"({error.reason}); convert the text, for example with iconv -t UTF-8"
            ) from error
        self._held = held._replace(data=held.data[used:], text=held.text + text, taken=held.taken + used)

    def _advance(self, at: int) -> None:
        """Turn the first ``at`` characters into tokens."""
        held, tokenizer = self._held, self._tokenizer
        pieces, carry = tokenizer.pieces(held.context, held.text[:at], held.carry)
        if not held.begun:
            pieces = [*(Piece(token, "", 0) for token in tokenizer.before), *pieces]
        context = held.text[at - 1 : at] if tokenizer.cuts.head_matters else ""
        following = held._replace(
            text=held.text[at:], context=context or held.context, carry=carry, begun=True
        )
        self._ready.extend(pieces)
        self._held = following


def cover(
    text: str, start: int, ids: Sequence[int], ends: Sequence[int], carry: str
) -> tuple[list[Piece], str]:
    """Give every token the characters that it and no token before it covers, from ``start`` on; what is
    not covered belongs to the next token. Returns the pieces, and what is left at the end."""
    pieces = []
    for token, end in zip(ids, ends, strict=True):
        own = carry + text[start:end] if end > start else ""
        carry = carry if end <= start else ""
        start = max(start, end)
        pieces.append(Piece(int(token), own, len(own.encode())))
    return pieces, carry + text[start:]
