"""Every token of a text with its likelihood, and the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from streamssm.alphabet import Alphabet, Decoder, Piece
from streamssm.errors import SnapshotError
from streamssm.generation import CONTEXT
from streamssm.outputs import Outputs
from streamssm.rows.base import Column, Row
from streamssm.scoring import Scorer, TokenScore, require_logits

if TYPE_CHECKING:
    from streamssm.model import Model

_DIGITS = 6
_TOKEN = (
    Column("index", "integer"),
    Column("token", "integer"),
    Column("text", "text"),
    Column("log_likelihood", "number"),
)
_SUMS = (
    *(Column(name, "integer") for name in ("tokens", "scored", "bytes")),
    *(Column(name, "number") for name in ("mean_nll", "perplexity", "bits_per_byte")),
)
_CONTINUATION = (Column("generated", "integer"), Column("stopped", "text"), Column("rest", "text"))


class TokenRows:
    """A row for each token of a text, and one with the sums at its end; silent before a continuation, whose
    rows are its writer's."""

    kind = "tokens"

    def __init__(self, model: Model, alphabet: Alphabet | None, silent: bool = False):
        require_logits(model.manifest)
        self.scorer = Scorer()
        self.recent: list[int] = []  # the last tokens
        self.random: dict[str, str] | None = None  # where the random numbers were when it was saved
        self.columns = _TOKEN + (_CONTINUATION if silent else _SUMS)
        self._output = model.manifest.outputs[0].name
        self._alphabet, self._silent = alphabet, silent
        self._decoder: Decoder | None = None
        self._decoded: Mapping[str, Any] | None = None  # the decoder's state when it was saved
        self._noted: Sequence[Piece] = ()

    def note(self, tokens: Sequence[int], pieces: Sequence[Piece]) -> None:
        """The tokens whose outputs are pushed next; without ``pieces`` the alphabet says what they are."""
        if pieces:
            self._decoder = self._decoded = None  # its text goes on elsewhere
        self._noted = pieces or self._pieces(tokens)
        self.recent = [*self.recent, *(piece.token for piece in self._noted)][-CONTEXT:]

    def push(self, outputs: Outputs) -> list[Row]:
        """The rows of the tokens that are scored now."""
        noted, self._noted = self._noted, ()
        scores = self.scorer.push(noted, outputs[self._output])
        return [] if self._silent else [token_row(score) for score in scores]

    def flush(self) -> list[Row]:
        """The sums; then another text begins."""
        totals = self.scorer.totals
        values = {
            "log_likelihood": totals.log_likelihood,
            "mean_nll": totals.mean_nll,
            "perplexity": totals.perplexity,
            "bits_per_byte": totals.bits_per_byte,
        }
        counts = {"tokens": totals.tokens, "scored": totals.scored, "bytes": totals.size}
        self.scorer, self.recent, self._decoder, self._decoded = Scorer(), [], None, None
        return [counts | {name: _rounded(value) for name, value in values.items()}]

    def pass_over(self, items: int) -> None:
        """Tokens have no clock."""

    def state(self) -> dict[str, Any]:
        """The scorer's state, and the last tokens."""
        decoded = self._decoded if self._decoder is None else self._decoder.state()
        saved = {"scorer": self.scorer.state(), "recent": self.recent}
        return saved | {"random": self.random, "decoded": decoded}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the next token."""
        if not {"scorer", "recent", "random", "decoded"} <= set(state):
            raise SnapshotError("the snapshot holds no scores; it was saved with another --emit")
        self.scorer.restore(state["scorer"])
        self.recent, self.random = list(state["recent"]), state["random"]
        self._decoded = state["decoded"]

    def decoder(self) -> Decoder | None:
        """What turns the tokens that follow into text, where the alphabet is known."""
        if self._decoder is None and self._alphabet is not None:
            self._decoder = self._alphabet.decoder(self.recent)
            if self._decoded is not None:
                self._decoder.restore(self._decoded)
        return self._decoder

    def _pieces(self, tokens: Sequence[int]) -> list[Piece]:
        decoder = self.decoder()
        return [Piece(int(t), "" if decoder is None else decoder.add(int(t)), 0) for t in tokens]


def token_row(score: TokenScore) -> Row:
    """A scored token as a row."""
    return msgspec.structs.asdict(score) | {"log_likelihood": _rounded(score.log_likelihood)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
