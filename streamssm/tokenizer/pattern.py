"""Which neighbours a regular expression can see together.

A pattern is read as a set of *positions*, each of which tests one character (``\\p{L}``, ``[^\\s]``,
``x``), and for each position those that may be tested on the next character (Glushkov's automaton;
what a look-ahead tests is tested too). Between two characters of which no such pair of positions
accepts both, the pattern sees nothing: its matches before and after are what they would be if the
text ended, or began, there. Whether a position accepts a character is asked of the library itself, so
that both mean the same by a letter.

What cannot be read this way (anchors, look-behind, references, empty matches) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

#: whether the regular expression of a single position accepts a character
Accepts = Callable[[str, str], bool]

#: letters that, ignoring case, are also written as one character: ss and U+00DF, ffi and U+FB03
_LIGATURES = frozenset({"ss", "ff", "fi", "fl", "st"})
_PLAIN_ESCAPES = "sSdDwWhHnrtfvae"
_HEX = frozenset("0123456789abcdefABCDEF")


class UnreadableError(Exception):
    """The pattern has a part whose reach is not known."""


@dataclass(frozen=True)
class _Node:
    """A part of a pattern. Sets of positions are bit masks.

    ``first`` and ``last`` begin and end a match of the part, ``single`` are matches of one character;
    ``empty`` says that it may match nothing, ``free`` that it surely can, wherever it stands.
    """

    first: int = 0
    last: int = 0
    single: int = 0
    empty: bool = True
    free: bool = True


class Pattern:
    """A readable regular expression.

    Raises:
        UnreadableError: it is not.
    """

    def __init__(self, source: str, accepts: Accepts):
        parser = _Parser(source)
        root = parser.parse()
        if root.empty:
            raise UnreadableError("it can match nothing")
        self._atoms, self._follow, self._single = parser.atoms, parser.follow, root.single
        self._accepts = accepts
        self._masks: dict[str, int] = {}
        self._pairs: dict[tuple[int, int], bool] = {}

    def positions(self, char: str) -> int:
        """The positions that accept a character."""
        if char not in self._masks:
            by_atom = {atom: self._accepts(atom, char) for atom in set(self._atoms)}
            self._masks[char] = sum(1 << i for i, atom in enumerate(self._atoms) if by_atom[atom])
        return self._masks[char]

    def sees(self, a: str, b: str) -> bool:
        """Whether anything decided before the end of ``a`` may depend on ``b`` after it, or the reverse."""
        pair = self.positions(a), self.positions(b)
        if pair not in self._pairs:
            self._pairs[pair] = any(self._follow[x] & pair[1] for x in _bits(pair[0]))
        return self._pairs[pair]

    def surely_matches(self, char: str) -> bool:
        """Whether the character is part of a match wherever it stands."""
        return bool(self.positions(char) & self._single)

    def may_match(self, char: str) -> bool:
        """Whether the character can be part of a match."""
        return bool(self.positions(char))


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass
class _Parser:
    """Reads Oniguruma's syntax, as far as tokenizers use it."""

    source: str
    atoms: list[str] = field(default_factory=list)
    follow: list[int] = field(default_factory=list)
    _at: int = 0
    _fold: bool = False  # (?i)

    def parse(self) -> _Node:
        root = self._alternatives()
        if self._at < len(self.source):
            raise UnreadableError(f"an unmatched {self.source[self._at]!r}")
        self._check_ligatures()
        return root

    def _peek(self, count: int = 1) -> str:
        return self.source[self._at : self._at + count]

    def _take(self, count: int = 1) -> str:
        text = self._peek(count)
        self._at += count
        return text

    def _skip(self, text: str) -> bool:
        found = self._peek(len(text)) == text
        self._at += len(text) * found
        return found

    def _alternatives(self) -> _Node:
        fold = self._fold  # (?i) holds to the end of its group
        nodes = [self._sequence()]
        while self._skip("|"):
            nodes.append(self._sequence())
        self._fold = fold
        node = nodes[0]
        for other in nodes[1:]:
            node = _Node(
                node.first | other.first,
                node.last | other.last,
                node.single | other.single,
                node.empty or other.empty,
                node.free or other.free,
            )
        return node

    def _sequence(self) -> _Node:
        node = _Node()
        while self._peek() not in ("", "|", ")"):
            node = self._join(node, self._quantified())
        return node

    def _join(self, a: _Node, b: _Node) -> _Node:
        self._link(a.last, b.first)
        return _Node(
            a.first | (b.first if a.empty else 0),
            b.last | (a.last if b.empty else 0),
            (a.single if b.free else 0) | (b.single if a.free else 0),
            a.empty and b.empty,
            a.free and b.free,
        )

    def _link(self, before: int, after: int) -> None:
        for position in _bits(before):
            self.follow[position] |= after

    def _quantified(self) -> _Node:
        node = self._part()
        while (bounds := self._quantifier()) is not None:
            least, most = bounds
            # of {m,n} only "may it repeat" is kept: more neighbours than there are do no harm
            if most is None or most > 1:
                self._link(node.last, node.first)
            single = node.single if least <= 1 or node.free else 0
            empty, free = node.empty or least == 0, node.free or least == 0
            if most == 0:
                raise UnreadableError("a part that is repeated 0 times")
            if self._skip("+"):  # possessive: never gives back, so it cannot always match nothing
                self._link(node.last, node.first)
                free = False
            else:
                self._skip("?")
            node = _Node(node.first, node.last, single, empty, free)
        return node

    def _quantifier(self) -> tuple[int, int | None] | None:
        """Least and most repetitions, if a quantifier comes next."""
        for mark, bounds in (("?", (0, 1)), ("*", (0, None)), ("+", (1, None))):
            if self._skip(mark):
                return bounds
        end = self.source.find("}", self._at)
        if self._peek() != "{" or end < 0:
            return None
        low, comma, high = self.source[self._at + 1 : end].partition(",")
        if (
            not all(text == "" or (text.isascii() and text.isdigit()) for text in (low, high))
            or not low + high
        ):
            return None
        self._at = end + 1
        if not comma:
            return int(low), int(low)
        return int(low or 0), int(high) if high else None

    def _part(self) -> _Node:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return self._atom(self._bracket())
        if char == "\\":
            return self._atom(self._escape())
        if char in "^$?*+":
            raise UnreadableError(f"{char!r}, which is no character")
        self._take()
        return self._atom("\\" + char if char in "{}]" else char)

    def _group(self) -> _Node:
        self._take()
        ahead = self._skip("?=") or self._skip("?!")
        atomic = not ahead and self._skip("?>")
        if not (ahead or atomic or self._skip("?:")):
            if self._skip("?i)"):
                self._fold = True  # up to the end of the group, the alternatives that follow included
                return self._alternatives()
            if self._skip("?i:"):
                return self._folded()
            if self._peek() == "?":
                raise UnreadableError(f"the group ({self._peek(3)}")
        node = self._closed()
        if ahead:  # it tests, and consumes nothing
            return _Node(node.first, 0, 0, True, False)
        return _Node(node.first, node.last, 0, node.empty, False) if atomic else node

    def _folded(self) -> _Node:
        before, self._fold = self._fold, True
        node = self._closed()
        self._fold = before
        return node

    def _closed(self) -> _Node:
        node = self._alternatives()
        if not self._skip(")"):
            raise UnreadableError("a group that does not end")
        return node

    def _atom(self, source: str) -> _Node:
        if self._fold:
            if len(source) > 1 or not source.isascii():
                raise UnreadableError(f"{source!r} without regard to case")
            source = f"(?i:{source})"
        mask = 1 << len(self.atoms)
        self.atoms.append(source)
        self.follow.append(0)
        return _Node(mask, mask, mask, False, False)

    def _bracket(self) -> str:
        """A class in brackets, as it is written."""
        start, depth = self._at, 0
        while self._at < len(self.source):
            char = self._take()
            if char == "\\":
                self._take()
            elif char == "[":
                depth += 1
                self._skip("^")
                if self._peek() == "]":
                    raise UnreadableError("a class that starts with ]")
            elif char == "]":
                depth -= 1
            if not depth:
                return self.source[start : self._at]
        raise UnreadableError("a class that does not end")

    def _escape(self) -> str:
        start = self._at
        self._take()
        char = self._take()
        if char in ("p", "P", "x") and self._peek() == "{":
            end = self.source.find("}", self._at)
            if end < 0:
                raise UnreadableError("an escape that does not end")
            self._at = end + 1
        elif char in ("x", "u"):
            for _ in range(2 if char == "x" else 4):
                if self._take() not in _HEX:
                    raise UnreadableError(f"the escape \\{char}")
        elif not char or (char.isalnum() and char not in _PLAIN_ESCAPES):
            raise UnreadableError(f"the escape \\{char}")
        return self.source[start : self._at]

    def _check_ligatures(self) -> None:
        for position, atom in enumerate(self.atoms):
            for other in _bits(self.follow[position]):
                pair = atom.removeprefix("(?i:")[:1] + self.atoms[other].removeprefix("(?i:")[:1]
                if atom.startswith("(?i:") and pair.lower() in _LIGATURES:
                    raise UnreadableError(f"{pair!r} without regard to case, which may be one character")
