"""What every stage of a tokenizer makes of two neighbouring characters, wherever they stand.

A stage is asked about the place between ``a`` and ``b`` and answers one of three:

* MIXED: what it does on one side may depend on the other side, or it is not known;
* JOINED: it does on either side what it would do alone, but may leave both in one piece;
* APART: so, and it surely ends a piece between them.

With the answer come the characters that may stand there afterwards. The rules hold for the library's
documented stages; a stage that is not listed is MIXED everywhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from streamssm.tokenizer.characters import is_space, stands_alone, starts_anew
from streamssm.tokenizer.pattern import Pattern, UnreadableError

Spec = Mapping[str, Any]


class Verdict(Enum):
    """What a stage sees between two characters."""

    MIXED = 0
    JOINED = 1
    APART = 2


class Seen(NamedTuple):
    """A verdict, and what the characters before and after the place may have become."""

    verdict: Verdict
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


Stage = Callable[[str, str], Seen]
MIXED = Seen(Verdict.MIXED)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def unknown(a: str, b: str) -> Seen:
    """The stage of which nothing is known."""
    return MIXED


def component(kind: str, spec: Spec) -> Any:
    """The library's own ``normalizer`` or ``pre_tokenizer`` of a specification."""
    from tokenizers import Tokenizer

    empty: dict[str, Any] = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    whole = empty | {"version": "1.0", "added_tokens": [], "model": model, kind: spec}
    return getattr(Tokenizer.from_str(json.dumps(whole)), kind)


def flatten(spec: Spec | None, inner: str) -> list[Spec]:
    """A stage, or a sequence of stages in sequences, as a list."""
    if spec is None:
        return []
    if spec["type"] != "Sequence":
        return [spec]
    return [stage for part in spec[inner] for stage in flatten(part, inner)]


@functools.lru_cache(512)
def _remover(atom: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(atom), "removed")


def accepts(atom: str, char: str) -> bool:
    """Whether a regular expression for one character accepts it, asked of the library."""
    return not _remover(atom).pre_tokenize_str(char)


def _readable(spec: Spec | str) -> Pattern | None:
    """The pattern of a specification, ``{"Regex": ...}`` or ``{"String": ...}``, if it can be read."""
    if isinstance(spec, Mapping):
        source = spec["Regex"] if "Regex" in spec else _literal(spec["String"])
    else:
        source = spec
    try:
        return Pattern(source, accepts)
    except UnreadableError:
        return None


def _literal(text: str) -> str:
    return "".join("\\" + char if char.isascii() and not char.isalnum() else char for char in text)


# Normalisers. None of them ends a piece.


def normaliser(spec: Spec) -> Stage:
    """The stage of a normaliser."""
    kind = spec["type"]
    if kind in ("NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"):
        return _by_character(spec, starts_anew)
    if kind in ("Lowercase", "Uppercase", "Nmt", "StripAccents", "ByteLevel"):
        return _by_character(spec, None)
    if kind == "Precompiled":
        return _by_character(spec, stands_alone)
    if kind == "Replace":
        return _replace(spec)
    if kind == "Strip":
        return lambda a, b: MIXED if is_space(a) else Seen(Verdict.JOINED, (a,), (b,))
    return _joined if kind == "Prepend" else unknown


def _joined(a: str, b: str) -> Seen:
    return Seen(Verdict.JOINED, (a,), (b,))


def _by_character(spec: Spec, independent: Callable[[str], bool] | None) -> Stage:
    """A normaliser that maps characters one by one, as long as they are independent."""
    mapped = functools.lru_cache(1 << 14)(component("normalizer", spec).normalize_str)

    def see(a: str, b: str) -> Seen:
        if independent is not None and not (independent(a) and independent(b)):
            return MIXED
        before, after = mapped(a), mapped(b)
        if not before or not after or not all(starts_anew(char) for char in after[1:2]):
            return MIXED
        return Seen(Verdict.JOINED, (before[-1],), (after[0],))

    return see


def _replace(spec: Spec) -> Stage:
    pattern, content = _readable(spec["pattern"]), spec["content"]
    if pattern is None:
        return unknown

    def become(char: str, replacement: str) -> tuple[str, ...]:
        if not pattern.may_match(char):
            return (char,)
        # the only character of a match, or perhaps one of several, or of none
        always = len(spec["pattern"].get("String", "")) == 1
        return (replacement,) if always else (char, replacement)

    def see(a: str, b: str) -> Seen:
        if pattern.sees(a, b):
            return MIXED
        before, after = become(a, content[-1:]), become(b, content[:1])
        return Seen(Verdict.JOINED, before, after) if all((*before, *after)) else MIXED

    return see


# Pre-tokenisers.

#: those that look at two neighbours alone, so that the library can be asked about any two
_BY_PAIR = (
    "BertPreTokenizer",
    "CharDelimiterSplit",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
)


def pre_tokeniser(spec: Spec) -> Stage:
    """The stage of a pre-tokeniser."""
    kind = spec["type"]
    if kind in _BY_PAIR:
        return _by_pair(spec)
    if kind == "Split":
        return _split(_readable(spec["pattern"]), spec["behavior"], spec.get("invert", False))
    if kind == "ByteLevel":
        return _byte_level(_readable(GPT2) if spec.get("use_regex", True) else None)
    return _metaspace(spec) if kind == "Metaspace" else unknown


def _by_pair(spec: Spec) -> Stage:
    split = component("pre_tokenizer", spec).pre_tokenize_str

    def see(a: str, b: str) -> Seen:
        joined = any(start == 0 and stop == 2 for _, (start, stop) in split(a + b))
        return Seen(Verdict.JOINED if joined else Verdict.APART, (a,), (b,))

    return see


def _split(pattern: Pattern | None, behaviour: str, inverted: bool) -> Stage:
    if pattern is None:
        return unknown

    def ends(a: str, b: str) -> bool:
        """Whether a piece surely ends between: no match reaches across, so one ends or starts here."""
        after_match, before_match = pattern.surely_matches(a), pattern.surely_matches(b)
        if behaviour in ("Isolated", "Removed"):
            return after_match or before_match
        if inverted:
            return False
        if behaviour == "MergedWithPrevious":
            return after_match
        if behaviour == "MergedWithNext":
            return before_match
        one_side = (after_match and not pattern.may_match(b)) or (before_match and not pattern.may_match(a))
        return behaviour == "Contiguous" and one_side

    def see(a: str, b: str) -> Seen:
        if pattern.sees(a, b):
            return MIXED
        return Seen(Verdict.APART if ends(a, b) else Verdict.JOINED, (a,), (b,))

    return see


def _byte_level(pattern: Pattern | None) -> Stage:
    inner = _joined if pattern is None else _split(pattern, "Isolated", False)

    def see(a: str, b: str) -> Seen:
        verdict = inner(a, b).verdict
        return MIXED if verdict is Verdict.MIXED else Seen(verdict, (_bytes_of(a)[-1],), (_bytes_of(b)[0],))

    return see


@functools.lru_cache(1 << 14)
def _bytes_of(char: str) -> str:
    """The printable characters that stand for the bytes of a character."""
    spec = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return str(component("pre_tokenizer", spec).pre_tokenize_str(char)[0][0])


def _metaspace(spec: Spec) -> Stage:
    mark, splits = spec["replacement"], spec.get("split", True)

    def see(a: str, b: str) -> Seen:
        a, b = (mark if char == " " else char for char in (a, b))
        return Seen(Verdict.APART if splits and b == mark else Verdict.JOINED, (a,), (b,))

    return see


# Added tokens: matched before and after normalisation, and never part of a piece.


class AddedToken(NamedTuple):
    """An added token as it is searched for."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool


def added_tokens(tokens: Iterable[AddedToken], head_matters: bool) -> Stage:
    """The stage that takes added tokens out; ``head_matters`` if the head of the text that follows one
    is treated like the head of the whole."""
    known = [token for token in tokens if token.content]
    pairs = {token.content[i : i + 2] for token in known for i in range(len(token.content) - 1)}
    lasts, words = {token.content[-1] for token in known}, [token for token in known if token.single_word]
    word_ends = {token.content[-1] for token in words}
    word_heads = {token.content[0] for token in words}
    strippers = {token.content[-1] for token in known if token.rstrip}
    left = any(token.lstrip for token in known)

    def mixed(a: str, b: str) -> bool:
        if a + b in pairs or a in word_ends or b in word_heads:
            return True
        if is_space(a) and (left or (strippers and (head_matters or is_space(b)))):
            return True
        return (a in strippers and is_space(b)) or (head_matters and a in lasts)

    return lambda a, b: MIXED if mixed(a, b) else Seen(Verdict.JOINED, (a,), (b,))


# Models, where no pre-tokeniser has ended a piece.


def model(spec: Spec) -> Stage:
    """The stage of the model, APART where no token of its can reach across."""
    if spec["type"] != "BPE" or spec.get("ignore_merges"):
        return unknown
    if spec.get("continuing_subword_prefix") or spec.get("end_of_word_suffix"):
        return unknown
    return _merges(spec["vocab"])


def _merges(vocabulary: Mapping[str, int]) -> Stage:
    @functools.cache
    def pairs() -> frozenset[int]:
        import numpy as np

        codes = np.frombuffer("\0".join(vocabulary).encode("utf-32-le", "surrogatepass"), np.uint32)
        codes = codes.astype(np.uint64)
        return frozenset(np.unique(codes[:-1] << np.uint64(32) | codes[1:]).tolist())

    def see(a: str, b: str) -> Seen:
        # characters without a token of their own become bytes, or are fused
        if a not in vocabulary or b not in vocabulary or (ord(a) << 32 | ord(b)) in pairs():
            return MIXED
        return Seen(Verdict.APART, (a,), (b,))

    return see
