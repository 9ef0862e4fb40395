"""Tokens to text as they come."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_CONTEXT = 8  # tokens before, which decide on spaces
_OPEN = 16  # tokens that may wait for the rest of a character
_HALF = "\ufffd"


class TextDecoder:
    """The text that tokens add to what is before them.

    A token alone has no text of its own: spaces depend on the token before, and a character may take
    several. So the last few tokens are decoded together, and what was there before is taken off.
    """

    def __init__(self, library: Any, context: Sequence[int] = ()):
        self._library = library
        shown = (token for token in reversed(context) if not self._is_skipped([token]))
        before = list(itertools.islice(shown, _CONTEXT))[::-1]
        while before and self._decode(before).startswith(_HALF):  # it starts in the middle of a character
            del before[0]
        self._before = [before]  # in groups of whole characters
        self._open: list[int] = []

    def add(self, token: int) -> str:
        """The text that becomes known by this token; "" in the middle of a character."""
        self._open.append(token)
        added = self._added()
        if added.endswith(_HALF) and len(self._open) < _OPEN:
            return ""
        return self._close(added)

    def end(self) -> str:
        """What the last tokens are, though they are not a whole character."""
        return self._close(self._added())

    def state(self) -> dict[str, Any]:
        """What is held back, and the tokens before it."""
        return {"before": self._before, "open": self._open}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._before, self._open = [list(group) for group in state["before"]], list(state["open"])

    def _added(self) -> str:
        context = [token for group in self._before for token in group]
        before, whole = self._decode(context), self._decode(context + self._open)
        # a half character at the end of the context is completed by these
        return whole[len(before if whole.startswith(before) else before.rstrip(_HALF)) :]

    def _close(self, added: str) -> str:
        # bytes that are no character would spoil those that follow: some decoders judge them together
        if not added.endswith(_HALF) and not self._is_skipped(self._open):
            self._before.append(self._open)
        while sum(map(len, self._before[1:])) >= _CONTEXT:
            del self._before[0]
        self._open = []
        return added

    def _is_skipped(self, tokens: list[int]) -> bool:
        """Special tokens alone: they have no part in the text, so they are no context either, or a
        row of them would push out the word that decides on the next space."""
        return not self._decode(tokens) and bool(self._library.decode(tokens, skip_special_tokens=False))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._library.decode(tokens, skip_special_tokens=True))
