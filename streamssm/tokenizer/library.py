"""A tokenizer.json, opened with the library ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from streamssm.alphabet import Piece
from streamssm.errors import ModelFileError, SourceError
from streamssm.tokenizer.cuts import Cuts
from streamssm.tokenizer.decoder import TextDecoder
from streamssm.tokenizer.encoder import TextEncoder, cover


class TextTokenizer:
    """An alphabet whose letters are the tokens of a tokenizer.json.

    ``before`` and ``after`` are the tokens that the tokenizer puts around every text. Truncation,
    padding and dropout, which are for training, are switched off.

    Raises:
        ModelFileError: ``data`` is no tokenizer.json that the installed library reads.
        SourceError: the library is not installed.
    """

    name = "tokenizer"

    def __init__(self, data: bytes):
        self._library = _open(data)
        config = json.loads(self._library.to_str())
        self.before, self.after = _around(config["post_processor"])
        # the tokens around are put there once a text, not once a part
        config |= {"post_processor": None, "truncation": None, "padding": None}
        config["model"] |= {"dropout": None} if "dropout" in config["model"] else {}
        self._parts = _open(json.dumps(config).encode())
        self._config = config

    @cached_property
    def cuts(self) -> Cuts:
        """Where a text may be cut."""
        normaliser = self._parts.normalizer
        return Cuts(self._config, normaliser.normalize_str if normaliser is not None else str)

    @cached_property
    def size(self) -> int:
        """The largest token and one."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def known(self, token: int) -> bool:
        """Whether there is such a token."""
        return self._library.id_to_token(token) is not None

    def encoder(self) -> TextEncoder:
        """A new text."""
        return TextEncoder(self)

    def decoder(self, context: Sequence[int] = ()) -> TextDecoder:
        """Tokens to text, after the tokens ``context``."""
        return TextDecoder(self._library, context)

    def pieces(self, context: str, text: str, carry: str) -> tuple[list[Piece], str]:
        """The tokens of ``text`` where it follows ``context``, which are not its own.

        Returns:
            The tokens, each with the characters that it covers, the first ones preceded by ``carry``;
            and the characters at the end that none covers.
        """
        found = self._parts.encode(context + text, add_special_tokens=False)
        skip = len(self._parts.encode(context, add_special_tokens=False).ids) if context else 0
        ends = [end for _, end in found.offsets]
        return cover(context + text, len(context), found.ids[skip:], ends[skip:], carry)


def _open(data: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SourceError(
            "text needs the tokenizer in the model file, and that the library tokenizers; "
            "pip install 'streamssm[text]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(data.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception as error:  # the library raises plain Exception
        raise ModelFileError(
            f"the tokenizer cannot be read: {error}; upgrade tokenizers, or export again"
        ) from error
    return tokenizer


def _around(spec: Mapping[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that a post-processor puts before and after a text.

    Raises:
        ModelFileError: it does something else.
    """
    kind = None if spec is None else spec["type"]
    if spec is None or kind == "ByteLevel":
        return (), ()
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (spec["cls"][1],), (spec["sep"][1],)
    if kind == "TemplateProcessing":
        return _template(spec)
    if kind == "Sequence":
        before: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
        for part in spec["processors"]:  # every one wraps what the ones before it gave
            head, tail = _around(part)
            before, after = (*head, *before), (*after, *tail)
        return before, after
    raise ModelFileError(f"the tokenizer's post-processor {kind} is not known; upgrade streamssm")


def _template(spec: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for part in spec["single"]:
        if "Sequence" in part:
            texts += 1
        else:
            parts[min(texts, 1)].extend(spec["special_tokens"][part["SpecialToken"]["id"]]["ids"])
    if texts != 1:
        raise ModelFileError(f"the tokenizer's template has {texts} places for a text; one is needed")
    return tuple(parts[0]), tuple(parts[1])
