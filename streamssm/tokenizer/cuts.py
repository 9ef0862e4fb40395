"""Where a text may be cut, so that the tokens of its parts are the tokens of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamssm.tokenizer import stages
from streamssm.tokenizer.characters import may_join_next, stands_alone, starts_anew
from streamssm.tokenizer.stages import AddedToken, Stage, Verdict

_CACHED = 1 << 16
_COMPOSE = ("NFC", "NFD", "NFKC", "NFKD", "BertNormalizer")


class Cuts:
    """The places where a tokenizer, given as the content of its tokenizer.json, can be cut.

    ``head_matters`` says that the first characters of a text are treated in another way than the same
    characters further on (a space is put before them, say): then the part after a cut must be tokenised
    behind the last character of the part before.
    """

    def __init__(self, config: Mapping[str, Any], normalise: Any):
        normalisers = stages.flatten(config["normalizer"], "normalizers")
        pre_tokenisers = stages.flatten(config["pre_tokenizer"], "pretokenizers")
        kinds = {spec["type"] for spec in normalisers}
        self.head_matters = any(map(_marks_head, (*normalisers, *pre_tokenisers)))
        self._composes, self._clusters = bool(kinds & {*_COMPOSE}), "Precompiled" in kinds
        raw, normal = _added(config["added_tokens"], normalise)
        self._stages: tuple[Stage, ...] = (
            stages.added_tokens(raw, self.head_matters),
            *map(stages.normaliser, normalisers),
            stages.added_tokens(normal, self.head_matters),
            *map(stages.pre_tokeniser, pre_tokenisers),
            stages.model(config["model"]),
        )
        self._known: dict[str, bool] = {}

    def last(self, text: str, start: int) -> int:
        """The last place in ``text``, after ``start``, where it may be cut, whatever follows; 0 if none."""
        for at in range(len(text) - 1, max(start, 0), -1):
            if self.allowed(text[at - 1], text[at], text[at + 1 : at + 2]):
                return at
        return 0

    def allowed(self, a: str, b: str, following: str) -> bool:
        """Whether the text may be cut between ``a`` and ``b``; ``following`` is the character after
        ``b``, empty if it is not known yet."""
        if not self._settled(b, following):
            return False
        pair = a + b
        if pair not in self._known:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[pair] = self._judge(0, a, b)
        return self._known[pair]

    def _settled(self, char: str, following: str) -> bool:
        """Whether nothing that follows can change what normalisation makes of ``char``."""
        if self._clusters:
            return bool(following) and stands_alone(following)
        if self._composes and may_join_next(char):
            return bool(following) and starts_anew(following)
        return True

    def _judge(self, stage: int, a: str, b: str) -> bool:
        if stage == len(self._stages):
            return False
        seen = self._stages[stage](a, b)
        if seen.verdict is Verdict.MIXED:
            return False
        if seen.verdict is Verdict.APART:
            return True
        return all(self._judge(stage + 1, before, after) for before in seen.before for after in seen.after)


def _marks_head(spec: Mapping[str, Any]) -> bool:
    """Whether a stage treats the head of a text in its own way."""
    return bool(
        spec["type"] == "Prepend"
        or spec.get("strip_left")
        or spec.get("add_prefix_space")
        or spec.get("prepend_scheme", "never") != "never"
    )


def _added(tokens: list[Mapping[str, Any]], normalise: Any) -> tuple[list[AddedToken], list[AddedToken]]:
    """The added tokens that are searched for in the text, and in the normalised text."""
    found: tuple[list[AddedToken], list[AddedToken]] = ([], [])
    for token in tokens:
        content = normalise(token["content"]) if token["normalized"] else token["content"]
        flags = (token["single_word"], token["lstrip"], token["rstrip"])
        found[token["normalized"]].append(AddedToken(content, *flags))
    return found
