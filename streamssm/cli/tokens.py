"""What ``streamssm run`` prints for models of tokens: the likelihood of a text, or its continuation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from streamssm.alphabet import Alphabet, open_alphabet
from streamssm.errors import UsageError
from streamssm.generation import CONTEXT, Sampler, Writer, prompt_stream, require_generation
from streamssm.rows import Row, Rows
from streamssm.rows.audio import samples_output
from streamssm.rows.tokens import TokenRows, token_row
from streamssm.running.choice import choose_rows
from streamssm.scoring import require_alphabet
from streamssm.sinks import name_of

if TYPE_CHECKING:
    from streamssm.cli.interrupt import Interrupt
    from streamssm.cli.run import Options
    from streamssm.model import Model
    from streamssm.report import RunReport
    from streamssm.stream import Stream


class RowSink(Protocol):
    """Where rows go."""

    def write(self, rows: Sequence[Row]) -> object:
        """Write these rows."""


def choose(model: Model, options: Options) -> tuple[Rows, Alphabet | None]:
    """The rows to write, as asked or else as the model suggests, and the alphabet of a model of tokens.

    Raises:
        UsageError: the model cannot give them, or the options contradict each other.
    """
    emit = options.emit
    _check_sampling(options)
    if options.generate is not None:
        if emit not in (None, "tokens", "text"):
            raise UsageError(f"--generate prints tokens or text, not {emit}; leave --emit {emit} out")
        require_generation(model)
        return TokenRows(model, require_alphabet(model), silent=True), open_alphabet(model.file)
    if emit == "text":
        raise UsageError("--emit text prints a continuation; give its length with --generate")
    sound = name_of(options.format, options.output) in ("wav", "wav16")
    if emit is None and sound and samples_output(model.manifest) is not None:
        emit = "audio"
    return choose_rows(model, emit, options.decide)


def format_name(options: Options) -> str | None:
    """The format that was asked for: ``--emit text`` is the text alone.

    Raises:
        UsageError: it is not.
    """
    if options.emit != "text":
        return options.format
    if options.format not in (None, "txt"):
        raise UsageError(
            f"--emit text writes the text alone; use --emit tokens with --format {options.format}"
        )
    return "txt"


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

    def __init__(self, model: Model, stream: Stream, rows: TokenRows, options: Options):
        alphabet = require_alphabet(model)
        self._model, self._rows, self._options = model, rows, options
        self._sampler = Sampler(
            1.0 if options.temperature is None else options.temperature,
            options.top_k,
            1.0 if options.top_p is None else options.top_p,
            options.seed or 0,
        )
        if options.seed is None and rows.random is not None:
            self._sampler.restore(rows.random)
        self.stream = prompt_stream(model, stream, rows.scorer)
        self._writer = Writer(model, self.stream, rows.scorer, self._sampler, alphabet.known)
        self._decoder = rows.decoder() or alphabet.decoder()

    def write(self, sink: RowSink, report: RunReport, interrupt: Interrupt) -> None:
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
            self._rows.recent = [*self._rows.recent, score.token][-CONTEXT:]
            drawn += 1
            sink.write([token_row(score)])
            report.lines += self._options.emit != "text"
            if score.token in self._model.manifest.input.end:
                reason = "end"
                break
        self._close(sink, report, {"generated": drawn, "stopped": reason})

    def _close(self, sink: RowSink, report: RunReport, summary: Row) -> None:
        """The rest of a character and the last row; a saved stream goes on without."""
        self._rows.random = self._sampler.state()
        if self._options.save_state is not None:
            return
        rest = self._decoder.end()
        sink.write([summary | ({"rest": rest} if rest else {})])
        report.lines += self._options.emit != "text"
