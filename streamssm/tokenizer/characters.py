"""Characters beside which Unicode's own algorithms may be cut: normalisation and grapheme clusters.

Python's tables and the tokenizer library's may be of different Unicode versions. What is assigned here
is there too, and never changes in either; what is not assigned is trusted with nothing.
"""

from __future__ import annotations

import functools
import sys
import unicodedata

#: characters of Unicode 3 that are a grapheme cluster unless a mark follows (Latin, Greek, Cyrillic,
#: punctuation, CJK, kana, hangul syllables); Unicode's whole definition is not needed where few use it
_WHOLE = (
    (0x09, 0x0A),
    (0x20, 0xAC),
    (0xAE, 0x2FF),
    (0x370, 0x373),
    (0x384, 0x482),
    (0x48A, 0x513),
    (0x2010, 0x2027),
    (0x3001, 0x3029),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x3400, 0x4DB5),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
)


def is_space(char: str) -> bool:
    """Whether any of the definitions of white space in use holds."""
    return char.isspace() or char in "\u180e\u200b\ufeff"


@functools.lru_cache(1 << 16)
def starts_anew(char: str) -> bool:
    """Whether no normalisation form joins or reorders the character with what comes before it."""
    if unicodedata.category(char) in ("Cn", "Cs", "Co"):
        return False
    head = unicodedata.normalize("NFKD", char)[0]
    return all(unicodedata.combining(c) == 0 and c not in _seconds() for c in (char, head))


@functools.lru_cache(1 << 16)
def stands_alone(char: str) -> bool:
    """Whether the character, before another such one, is a grapheme cluster of its own."""
    return any(low <= ord(char) <= high for low, high in _WHOLE) and starts_anew(char)


def may_join_next(char: str) -> bool:
    """Whether a mark that follows can change what normalisation makes of the character."""
    return not (
        char.isascii() and (char.isspace() or char.isdigit() or char in "!\"#$%&'()*+,-./:;?@[\\]^_`{|}~")
    )


@functools.cache
def _seconds() -> frozenset[str]:
    """The characters that some character before them is composed with, jamo of hangul included."""
    found = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A7, 0x11C3))}
    for code in range(0xC0, sys.maxunicode if sys.maxunicode < 0x20000 else 0x20000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)
