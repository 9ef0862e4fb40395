"""What ``streamssm run`` prints for models of tokens: the likelihood of a text, or its continuation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from streamssm.alphabet import Alphabet, Decoder, Piece, open_alphabet
from streamssm.cli.lines import Lines, make_lines
from streamssm.errors import SnapshotError, UsageError
from streamssm.generation import CONTEXT, Sampler, Writer, prompt_stream, require_generation
from streamssm.outputs import Outputs
from streamssm.scoring import Scorer, TokenScore, can_score, require_alphabet, require_logits

if TYPE_CHECKING:
    from streamssm.cli.interrupt import Interrupt
    from streamssm.cli.output import DataOutput
    from streamssm.cli.run import Options
    from streamssm.model import Model
    from streamssm.report import RunReport
    from streamssm.stream import Stream

_DIGITS = 6


class TokenLines:
    """A line for each token of a text, and one with the sums at its end; silent before a continuation."""

    def __init__(self, model: Model, alphabet: Alphabet | None, silent: bool = False):
        require_logits(model.manifest)
        self.scorer = Scorer()
        self.recent: list[int] = []  # the last tokens
        self.random: dict[str, str] | None = None  # where the random numbers were when it was saved
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

    def push(self, outputs: Outputs) -> list[bytes]:
        """The lines of the tokens that are scored now."""
        noted, self._noted = self._noted, ()
        scores = self.scorer.push(noted, outputs[self._output])
        return [] if self._silent else [token_line(score) for score in scores]

    def flush(self) -> list[bytes]:
        """The sums."""
        totals = self.scorer.totals
        values = {
            "log_likelihood": totals.log_likelihood,
            "mean_nll": totals.mean_nll,
            "perplexity": totals.perplexity,
            "bits_per_byte": totals.bits_per_byte,
        }
        counts = {"tokens": totals.tokens, "scored": totals.scored, "bytes": totals.size}
        return [_encode(counts | {name: _rounded(value) for name, value in values.items()})]

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


def choose(model: Model, options: Options) -> tuple[Lines, Alphabet | None]:
    """The lines to write, as asked or else as the model suggests, and the alphabet of a model of tokens.

    Raises:
        UsageError: the model cannot give them, or the options contradict each other.
    """
    manifest, emit = model.manifest, options.emit
    alphabet = open_alphabet(model.file)
    _check_sampling(options)
    if options.generate is not None:
        if emit in ("events", "items"):
            raise UsageError(f"--generate prints tokens or text, not {emit}; leave --emit {emit} out")
        require_generation(model)
        return TokenLines(model, require_alphabet(model), silent=True), alphabet
    if emit == "text":
        raise UsageError("--emit text prints a continuation; give its length with --generate")
    suggested = manifest.events is None and alphabet is not None and can_score(manifest)
    if emit == "tokens" or (emit is None and suggested):
        return TokenLines(model, alphabet), alphabet
    return make_lines(manifest, emit), alphabet


def _check_sampling(options: Options) -> None:
    given = {
        "--temperature": options.temperature,
        "--top-k": options.top_k,
        "--top-p": options.top_p,
        "--seed": options.seed,
    }
    names = [name for name, value in given.items() if value is not None]
    if names and options.generate is None:
        raise UsageError(f"{', '.join(names)} say how to continue a text; give its length with --generate")


class Continuation:
    """What ``--generate`` writes after the prompt."""

    def __init__(self, model: Model, stream: Stream, lines: TokenLines, options: Options):
        alphabet = require_alphabet(model)
        self._model, self._lines, self._options = model, lines, options
        self._sampler = Sampler(
            1.0 if options.temperature is None else options.temperature,
            options.top_k,
            1.0 if options.top_p is None else options.top_p,
            options.seed or 0,
        )
        if options.seed is None and lines.random is not None:
            self._sampler.restore(lines.random)
        self.stream = prompt_stream(model, stream, lines.scorer)
        self._writer = Writer(model, self.stream, lines.scorer, self._sampler, alphabet.known)
        self._decoder = lines.decoder() or alphabet.decoder()

    def write(self, output: DataOutput, report: RunReport, interrupt: Interrupt) -> None:
        """Write token after token, until there are enough, one ends the text, or a signal comes."""
        reason, drawn = "length", 0
        while drawn < (self._options.generate or 0):
            if interrupt.requested:
                reason = "signal"
                break
            began = time.perf_counter()
            score = self._writer.next(self._decoder)
            took = time.perf_counter() - began
            report.add(1, took, took)
            self._lines.recent = [*self._lines.recent, score.token][-CONTEXT:]
            drawn += 1
            self._emit(score, output, report)
            if score.token in self._model.manifest.input.end:
                reason = "end"
                break
        self._close(output, report, {"generated": drawn, "stopped": reason})

    def _emit(self, score: TokenScore, output: DataOutput, report: RunReport) -> None:
        as_text = self._options.emit == "text"
        output.write([score.text.encode() if as_text else token_line(score)])
        report.lines += not as_text

    def _close(self, output: DataOutput, report: RunReport, summary: dict[str, Any]) -> None:
        """The rest of a character and the last line; a saved stream goes on without."""
        self._lines.random = self._sampler.state()
        if self._options.save_state is not None:
            return
        rest = self._decoder.end()
        if self._options.emit == "text":
            output.write([rest.encode()])
        else:
            output.write([_encode(summary | ({"rest": rest} if rest else {}))])
            report.lines += 1


def token_line(score: TokenScore) -> bytes:
    """A scored token as a line of JSON."""
    return _encode(msgspec.structs.asdict(score) | {"log_likelihood": _rounded(score.log_likelihood)})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _encode(line: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"
