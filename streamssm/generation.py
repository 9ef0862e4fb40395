"""Text that a model of tokens writes: draw a token, push it, draw the next.

A draw depends on the logits, the options and the state of the generator alone, so one seed gives one
text. Nothing is kept but the stream's state, however long the text becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from streamssm.alphabet import Decoder, Piece
from streamssm.errors import BackendError, InputError, SnapshotError, UsageError
from streamssm.scoring import Scorer, TokenScore, logits, require_alphabet, require_logits, tokens_of

if TYPE_CHECKING:
    from streamssm.model import Model
    from streamssm.stream import Stream

Array = npt.NDArray[Any]
_CHUNK = 1 << 16
CONTEXT = 8  # tokens before the first drawn one, which its text may depend on


class Sampler:
    """Draws tokens from logits.

    ``temperature`` divides the logits, 0 takes the most likely token; ``top_k`` keeps so many of the most
    likely ones; ``top_p`` keeps the fewest that have that much probability together, after ``top_k``.

    Raises:
        UsageError: an option is out of range.
    """

    def __init__(
        self, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0
    ) -> None:
        if not 0 <= temperature < np.inf:
            raise UsageError(f"temperature = {temperature} is not a finite number from 0 on")
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k = {top_k} is not positive; leave it out to keep all tokens")
        if not 0 < top_p <= 1:
            raise UsageError(f"top_p = {top_p} is not above 0 and at most 1")
        if seed < 0:
            raise UsageError(f"seed = {seed} is negative")
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._bits = np.random.PCG64(seed)
        self._random = np.random.Generator(self._bits)

    def draw(self, row: Array, allowed: Array) -> int:
        """A token for the logits ``row [V]``, among those that ``allowed [V]`` marks.

        Raises:
            BackendError: the logits are not numbers.
        """
        scores = np.where(allowed, row.astype(np.float64), -np.inf)
        best = scores.max(initial=-np.inf)
        if not np.isfinite(best):
            raise BackendError(
                f"the largest logit is {best}, so no token can be drawn; the model's numbers overflow"
            )
        if self._temperature == 0:
            return int(scores.argmax())
        # the most likely first, equal ones by number: a draw must not depend on the sort
        order = np.argsort(-scores, kind="stable")[: self._top_k]
        with np.errstate(over="ignore"):  # a temperature near 0 makes the others impossible
            weights = np.exp((scores[order] - best) / self._temperature)
        below = np.cumsum(weights)
        kept = int(np.searchsorted(below, self._top_p * below[-1])) + 1
        place = np.searchsorted(below[:kept], self._random.random() * below[kept - 1], "right")
        return int(order[min(place, kept - 1)])

    def state(self) -> dict[str, str]:
        """Where the random numbers are; as text, for they are longer than JSON's."""
        inner = self._bits.state["state"]
        return {"state": str(inner["state"]), "inc": str(inner["inc"])}

    def restore(self, state: Mapping[str, str]) -> None:
        """Continue with the random numbers after :meth:`state`."""
        try:
            numbers = {key: int(state[key]) for key in ("state", "inc")}
            whole: Any = {"bit_generator": "PCG64", "state": numbers, "has_uint32": 0, "uinteger": 0}
            self._bits.state = whole
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError("the snapshot's random numbers are damaged; save it again") from error


class Writer:
    """Continues a text from where a stream and its scorer are.

    ``scorer.row`` must be the logits after the last token. ``stream`` must return the logits of a token
    at once: see :func:`prompt_stream`.

    Raises:
        InputError: there is no token yet to go on from.
    """

    def __init__(
        self, model: Model, stream: Stream, scorer: Scorer, sampler: Sampler, known: Callable[[int], bool]
    ) -> None:
        if scorer.row is None:
            raise InputError(
                "the prompt is empty, and the model has no token that starts a text; give it a prompt"
            )
        self._model, self._stream, self._scorer, self._sampler = model, stream, scorer, sampler
        vocabulary = model.manifest.input.vocabulary or 0
        self._allowed = np.fromiter(map(known, range(vocabulary)), bool, vocabulary)

    def next(self, decoder: Decoder) -> TokenScore:
        """Draw a token and push it; its likelihood is the model's own, before the sampler's options.

        Raises:
            BackendError: the run failed.
        """
        row = self._scorer.row
        if row is None:  # a push that failed
            raise BackendError("the stream stopped in the middle of a token; start it again")
        token = self._sampler.draw(row, self._allowed)
        piece = Piece(token, decoder.add(token), 0)
        (score,) = self._scorer.push([piece], np.empty((0, row.size)))
        self._scorer.push((), logits(self._model, self._stream.push(tokens_of([piece]))))
        return score


def require_generation(model: Model) -> None:
    """Refuse a model that cannot continue a text.

    Raises:
        UsageError: it gives no logits of the next token, or takes several tokens at a time.
    """
    require_logits(model.manifest)
    if model.manifest.input.hop != 1:
        raise UsageError(f"{model.manifest.name} takes {model.manifest.input.hop} tokens at a time, not one")


def prompt_stream(model: Model, stream: Stream, scorer: Scorer) -> Stream:
    """The stream, one token a call, with the logits of every token that was pending given to ``scorer``."""
    if stream.block == 1:
        return stream
    single = model.stream(block=1)
    single.restore(stream.state())
    scorer.push((), logits(model, single.push(np.zeros(0, np.int64))))
    return single


def generate(
    model: Model,
    prompt: str | bytes,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[TokenScore]:
    """Continue ``prompt`` by at most ``count`` tokens; a token that ends texts is the last.

    Raises:
        UsageError: the model gives no logits of the next token or has no alphabet, or an option is out
            of range.
        InputError: the prompt does not fit the alphabet, or is empty.
    """
    require_generation(model)
    sampler = Sampler(temperature, top_k, top_p, seed)
    alphabet, scorer, stream = require_alphabet(model), Scorer(), model.stream()
    encoder = alphabet.encoder()
    encoder.feed(prompt.encode() if isinstance(prompt, str) else prompt)
    encoder.end(closing=False)
    context: list[int] = []
    while pieces := encoder.take(_CHUNK):
        context = [*context, *(piece.token for piece in pieces)][-CONTEXT:]
        scorer.push(pieces, logits(model, stream.push(tokens_of(pieces))))
    writer = Writer(model, prompt_stream(model, stream, scorer), scorer, sampler, alphabet.known)
    decoder = alphabet.decoder(context)
    for drawn in range(1, count + 1):
        score = writer.next(decoder)
        last = drawn == count or score.token in model.manifest.input.end
        yield replace(score, text=score.text + decoder.end()) if last else score
        if last:
            return
