"""How likely a model of tokens holds a text to be, token by token.

The logits that follow token i say how likely token i + 1 was; the first token of a text has no
likelihood, unless the tokenizer puts one before it. Each row is worked on alone and in float64, so that
the numbers do not depend on how the text was cut.
"""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamssm.alphabet import Alphabet, Piece, open_alphabet
from streamssm.errors import SnapshotError, UsageError
from streamssm.outputs import by_name

if TYPE_CHECKING:
    from streamssm.manifest import Manifest
    from streamssm.model import Model
    from streamssm.stream import Result

Array = npt.NDArray[Any]
_CHUNK = 1 << 16


class TokenScore(msgspec.Struct, frozen=True):
    """A token of a text; ``log_likelihood`` is natural, and None where nothing foretold the token."""

    index: int
    token: int
    text: str
    log_likelihood: float | None


@dataclass
class Totals:
    """Sums over a text. ``size`` counts the bytes of the scored tokens."""

    tokens: int = 0
    scored: int = 0
    size: int = 0
    log_likelihood: float = 0.0

    def add(self, size: int, log_likelihood: float | None) -> None:
        """Count one token."""
        self.tokens += 1
        if log_likelihood is not None:
            self.scored += 1
            self.size += size
            self.log_likelihood += log_likelihood

    @property
    def mean_nll(self) -> float | None:
        """Mean negative log-likelihood of a scored token, in nats."""
        return -self.log_likelihood / self.scored if self.scored else None

    @property
    def perplexity(self) -> float | None:
        """exp of the mean; infinite beyond what a float holds."""
        mean = self.mean_nll
        if mean is None:
            return None
        return math.exp(mean) if not mean > 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits for each byte of the scored text."""
        return -self.log_likelihood / math.log(2) / self.size if self.size else None


def can_score(manifest: Manifest) -> bool:
    """Whether the first output is the logits of the next token."""
    return _fault(manifest) is None


def require_logits(manifest: Manifest) -> None:
    """Refuse a model whose first output is not the logits of the next token.

    Raises:
        UsageError: it is not.
    """
    fault = _fault(manifest)
    if fault is not None:
        raise UsageError(
            f"{manifest.name} {fault}; text is scored and continued by models of tokens whose first output "
            "is the logits of the next one"
        )


def _fault(manifest: Manifest) -> str | None:
    spec, output = manifest.input, manifest.outputs[0]
    if spec.kind != "tokens" or spec.shape != () or spec.vocabulary is None:
        return f"takes {spec.kind} of shape {list(spec.shape)}"
    if output.kind != "logits":
        return f"gives {output.kind} as {output.name!r}"
    if output.shape != (spec.vocabulary,):
        return f"gives {list(output.shape)} logits for a vocabulary of {spec.vocabulary}"
    if output.ratio != (1, 1) or manifest.lookahead:
        return f"gives {output.ratio} logits a token and looks {manifest.lookahead} tokens ahead"
    return None


def log_likelihoods(row: Array) -> Array:
    """The log-likelihood of every token, from the logits ``row [V]``, in float64."""
    with np.errstate(invalid="ignore"):  # NaN and Inf give NaN
        scaled = row.astype(np.float64)
        scaled -= scaled.max()
        return np.asarray(scaled - np.log(np.exp(scaled).sum()))


class Scorer:
    """Joins the tokens of a text with the logits that a stream makes of them, however both are cut.

    ``row`` are the logits after the last token, once they are there: what generation starts from.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.row: Array | None = None
        self._waiting: deque[Piece] = deque()  # tokens whose logits before them are not there yet

    def push(self, pieces: Iterable[Piece], rows: Array) -> list[TokenScore]:
        """Tokens that were pushed, and the logits ``[T, V]`` that were returned; the tokens now scored."""
        self._waiting.extend(pieces)
        scores = self._settle()
        for row in rows:
            self.row = row
            scores += self._settle()
        return scores

    def state(self) -> dict[str, Any]:
        """What is remembered, as plain data."""
        row = None if self.row is None else base64.b64encode(self.row.astype("<f4").tobytes()).decode()
        return {
            "totals": asdict(self.totals),
            "row": row,
            "waiting": [list(piece) for piece in self._waiting],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            SnapshotError: it is none.
        """
        try:
            self.totals = Totals(**state["totals"])
            row = state["row"]
            self.row = None if row is None else np.frombuffer(base64.b64decode(row), "<f4")
            self._waiting = deque(Piece(*piece) for piece in state["waiting"])
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError("the snapshot holds no scores; it was saved with another --emit") from error

    def _settle(self) -> list[TokenScore]:
        """Score the next token, if there is one and the logits before it are there."""
        first = not self.totals.tokens
        if not self._waiting or (self.row is None and not first):
            return []
        piece = self._waiting.popleft()
        value = None if self.row is None else float(log_likelihoods(self.row)[piece.token])
        score = TokenScore(self.totals.tokens, piece.token, piece.text, value)
        self.totals.add(piece.size, value)
        self.row = None
        return [score]


def score(model: Model, text: str | bytes) -> tuple[list[TokenScore], Totals]:
    """The tokens of a whole text with their log-likelihoods, and the sums.

    Raises:
        UsageError: the model gives no logits of the next token, or has no alphabet.
        InputError: the text does not fit the alphabet.
    """
    require_logits(model.manifest)
    encoder, scorer, stream = require_alphabet(model).encoder(), Scorer(), model.stream()
    encoder.feed(text.encode() if isinstance(text, str) else text)
    encoder.end()
    scores: list[TokenScore] = []
    while pieces := encoder.take(_CHUNK):
        scores += scorer.push(pieces, logits(model, stream.push(tokens_of(pieces))))
    scores += scorer.push((), logits(model, stream.flush()))
    return scores, scorer.totals


def require_alphabet(model: Model) -> Alphabet:
    """The alphabet of a model.

    Raises:
        UsageError: it has none.
    """
    alphabet = open_alphabet(model.file)
    if alphabet is None:
        raise UsageError(
            f"{model.manifest.name} does not say what its tokens stand for; "
            "export it with a tokenizer or an alphabet"
        )
    return alphabet


def logits(model: Model, result: Result) -> Array:
    """The first output of a push, ``[T, V]``."""
    return by_name(model.manifest, result)[model.manifest.outputs[0].name]


def tokens_of(pieces: Iterable[Piece]) -> Array:
    """The tokens alone, ``[T]``."""
    return np.array([piece.token for piece in pieces], np.int64)
