"""``streamssm run``: push a source through a model."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from streamssm.cli.amount import Amount, PositiveNumber, parse_amount, to_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamssm.alphabet import Encoder, Piece
    from streamssm.cli.interrupt import Interrupt
    from streamssm.cli.lines import Lines
    from streamssm.cli.meter import Meter
    from streamssm.cli.output import DataOutput
    from streamssm.manifest import Manifest
    from streamssm.model import Model
    from streamssm.report import RunReport
    from streamssm.sources import Source
    from streamssm.stream import Stream

INPUT_FORMATS = (
    "auto",
    "wav",
    "audio",
    "f32le",
    "f64le",
    "s16le",
    "s24le",
    "s32le",
    "u8",
    "npy",
    "csv",
    "text",
    "bytes",
)
_EXTRA = "streamssm.run"
_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)


@dataclass(frozen=True)
class Options:
    """What the user asked for, named as on the command line."""

    model: str
    source: str
    chunk: Amount | None
    block: int | None
    backend: str
    emit: str | None
    generate: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    input_format: str
    rate: float | None
    channels: int | None
    channel: int | None
    allow_nonfinite: bool
    resume: Path | None
    save_state: Path | None
    stats: Path | None
    output: Path | None
    quiet: bool


@click.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "--chunk", metavar="AMOUNT", callback=parse_amount, help="Pushed at once: 160, 7ms, 1s; default: a block."
)
@click.option("--block", type=_COUNT, help="Items per backend call; default: the model's.")
@click.option("--backend", default="auto", show_default=True, help="Where the model runs.")
@click.option(
    "--emit",
    type=click.Choice(["events", "items", "tokens", "text"]),
    help="Default: events, if the model has any; tokens, if it foretells text; else items.",
)
@click.option("--generate", type=_COUNT, metavar="N", help="Continue the text by N tokens.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Of the draw; 0 takes the likeliest. [1]")
@click.option("--top-k", type=_COUNT, help="Draw among the K likeliest tokens. [all]")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among the likeliest of sum P. [1]"
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the draw; one seed, one text. [0]")
@click.option(
    "--input-format", type=click.Choice(INPUT_FORMATS), default="auto", help="Default: told by the data."
)
@click.option("--rate", type=PositiveNumber(), help="Items a second of headerless data.")
@click.option("--channels", type=_COUNT, help="Interleaved channels of raw samples.")
@click.option("--channel", type=_COUNT, help="Take this channel alone, counting from 1.")
@click.option("--allow-nonfinite", is_flag=True, help="Pass NaN and Inf on instead of refusing them.")
@click.option("--resume", type=_FILE, help="Continue the stream saved in this file.")
@click.option("--save-state", type=_FILE, help="At the end save the stream here instead of ending it.")
@click.option("--stats", type=_FILE, help="Write the final report as JSON.")
@click.option("-o", "--output", type=_FILE, help="Write the data here instead of standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No report.")
def run(**options: Any) -> int:
    """Push SOURCE through MODEL and print JSON lines.

    MODEL is a built-in name or a file. SOURCE is an audio file, .npy, .csv, text for models of
    bytes, nucleotides or a tokenizer, - for standard input, or sim:FILE to play a file as if live.
    A text is scored token by token, or continued with --generate.

    The lines are the same for every --chunk, and for a file and its samples on standard input.
    "time" is where an item starts, in seconds of input; look-ahead is already taken out. Ctrl-C
    ends the stream properly: what is pending is flushed, an open event is closed.
    """
    import streamssm

    asked = Options(**options)
    opened = streamssm.load(asked.model, backend=asked.backend)
    return _Run(opened, asked).go()


class _Run:
    """One run, set up so that whatever can be refused is refused before any work."""

    def __init__(self, model: Model, options: Options):
        from streamssm import clock
        from streamssm.report import RunReport

        self.options, self.model = options, model
        self.manifest: Manifest = model.manifest
        self.lines, self.encoder = self._choose_lines(model)
        self.stream = self._open_stream(model)
        rate = clock.input_rate(self.manifest)
        self.chunk = self.stream.block if options.chunk is None else to_items(options.chunk, rate, "--chunk")
        self._check_files(model)
        self.report: RunReport = RunReport(self.manifest, self.stream.block)

    def go(self) -> int:
        """Run to the end of the source, or to a signal; return the exit code."""
        from streamssm.cli.app import EXIT_INTERRUPTED, forget_stdout
        from streamssm.cli.interrupt import Interrupt
        from streamssm.cli.meter import Meter
        from streamssm.cli.output import DataOutput
        from streamssm.errors import OutputError

        with (
            self._open_source() as source,
            DataOutput(self.options.output) as output,
            Interrupt() as interrupt,
        ):
            meter = Meter(self.report, source.total)
            try:
                self._pump(source, output, meter, interrupt)
                self._finish(source, output, interrupt)
            except BrokenPipeError:
                if self.options.save_state is None:
                    return forget_stdout()
                raise OutputError("standard output was closed before the end; no state was saved") from None
            finally:
                meter.clear()
            self._write_report()
            return EXIT_INTERRUPTED if interrupt.requested else 0

    def _pump(self, source: Source, output: DataOutput, meter: Meter, interrupt: Interrupt) -> None:
        while not interrupt.requested:
            items = self._read(source, interrupt)
            if items is None or not len(items):
                return
            self._step(source, items, source.taken, output, meter)

    def _read(self, source: Source, interrupt: Interrupt) -> Any:
        """The next items; none at the end or after a signal."""
        from streamssm.cli.interrupt import Interrupted
        from streamssm.sources.text import TextSource

        items = None
        if not isinstance(source, TextSource):
            # a signal may also come just after the read: what was read is still pushed
            with suppress(Interrupted), interrupt.waiting():
                items = source.read(self.chunk)
            return items
        while not len(items := source.ready(self.chunk)) and not source.ended and not interrupt.requested:
            with suppress(Interrupted), interrupt.waiting():
                source.wait()
        return items

    def _step(
        self, source: Source, items: Any, pieces: Sequence[Piece], output: DataOutput, meter: Meter | None
    ) -> None:
        """Push some items and write what becomes known by them."""
        from streamssm.outputs import by_name

        began = time.perf_counter()
        outputs = by_name(self.manifest, self._push(source, items))
        compute = time.perf_counter() - began
        self._note(items, pieces)
        lines = self.lines.push(outputs)
        if lines and output.is_terminal and meter is not None:
            meter.clear()
        output.write(lines)
        self.report.lines += len(lines)
        late = compute if source.due is None else time.perf_counter() - source.due
        self.report.paced = source.due is not None
        self.report.add(len(items), compute, late)
        if meter is not None:
            meter.update(outputs[self.manifest.outputs[0].name])

    def _note(self, items: Any, pieces: Sequence[Piece]) -> None:
        from streamssm.cli.tokens import TokenLines

        if isinstance(self.lines, TokenLines):
            self.lines.note(items, pieces)

    def _push(self, source: Source, items: Any) -> Any:
        from streamssm.errors import InputError

        try:
            return self.stream.push(items)
        except InputError as error:
            raise InputError(f"{source.name}, chunk at item {self.stream.position}: {error}") from error

    def _finish(self, source: Source, output: DataOutput, interrupt: Interrupt) -> None:
        """Save the stream for another run, or end it; before that, continue the text if asked to."""
        options = self.options
        if options.generate is not None or options.save_state is None:
            self._end_text(source, output)
        if options.generate is not None:
            self._continue(output, interrupt)
        if options.save_state is not None:
            self._save(options.save_state)
        elif options.generate is None:
            self._flush(output)

    def _end_text(self, source: Source, output: DataOutput) -> None:
        """Push the tokens that waited for the end of the text."""
        from streamssm.errors import InputError, SourceError
        from streamssm.scoring import tokens_of
        from streamssm.sources.text import TextSource

        if self.encoder is None or not isinstance(source, TextSource):
            return
        try:
            self.encoder.end(closing=self.options.generate is None)
        except InputError as error:
            raise SourceError(f"{source.name}: {error}") from error
        while pieces := self.encoder.take(self.chunk):
            self._step(source, tokens_of(pieces), pieces, output, None)

    def _continue(self, output: DataOutput, interrupt: Interrupt) -> None:
        from streamssm.cli.tokens import Continuation, TokenLines

        assert isinstance(self.lines, TokenLines)  # chosen for --generate
        continuation = Continuation(self.model, self.stream, self.lines, self.options)
        continuation.write(output, self.report, interrupt)
        self.stream = continuation.stream

    def _flush(self, output: DataOutput) -> None:
        from streamssm.outputs import by_name

        began = time.perf_counter()
        outputs = by_name(self.manifest, self.stream.flush())
        self.report.compute += time.perf_counter() - began
        lines = self.lines.push(outputs) + self.lines.flush()
        self.report.lines += len(lines)
        output.write(lines)

    def _save(self, path: Path) -> None:
        import msgspec

        state = {"emit": type(self.lines).__name__, "lines": self.lines.state()}
        if self.encoder is not None:
            state["text"] = self.encoder.state()
        self.stream.save(path, extra={_EXTRA: msgspec.json.encode(state).decode()})

    def _open_stream(self, model: Model) -> Stream:
        from streamssm.errors import SnapshotError

        options = self.options
        if options.resume is None:
            return model.stream(options.block, allow_nonfinite=options.allow_nonfinite, in_place=True)
        allow = options.allow_nonfinite or None  # without the flag, as the stream was saved
        try:
            stream = model.resume(options.resume, options.block, allow, in_place=True)
        except SnapshotError as error:
            raise SnapshotError(f"--resume {options.resume}: {error}") from error
        self._restore_lines(stream)
        return stream

    def _restore_lines(self, stream: Stream) -> None:
        import msgspec

        from streamssm.errors import SnapshotError

        saved = stream.extra.get(_EXTRA)
        if saved is None:
            raise SnapshotError(
                f"{self.options.resume} was saved by a program, not by 'streamssm run --save-state'; "
                "it lacks the position of the output: resume it with model.resume()"
            )
        state = msgspec.json.decode(saved)
        if state["emit"] != type(self.lines).__name__:
            raise SnapshotError(f"{self.options.resume} was saved with another --emit; use the same one")
        self.lines.restore(state["lines"])
        if self.encoder is not None and "text" in state:
            self.encoder.restore(state["text"])

    def _choose_lines(self, model: Model) -> tuple[Lines, Encoder | None]:
        """The lines to write, and what turns text into tokens."""
        from streamssm.cli.tokens import TokenLines, choose

        lines, alphabet = choose(model, self.options)
        # bytes that need no text are read as they are
        plain = alphabet is None or (alphabet.name == "bytes" and not isinstance(lines, TokenLines))
        return lines, None if alphabet is None or plain else alphabet.encoder()

    def _open_source(self) -> Source:
        from streamssm.sources import Request, open_source

        options = self.options
        request = Request(
            self.manifest.input,
            options.input_format,
            options.rate,
            options.channels,
            options.channel,
            self.encoder,
        )
        return open_source(options.source, request)

    def _check_files(self, model: Model) -> None:
        from streamssm.cli.output import check_distinct, check_writable

        options = self.options
        read = [Path(model.path), Path(options.source.removeprefix("sim:").removeprefix("file:"))]
        after = [path for path in (options.save_state, options.stats) if path is not None]
        during = [options.output] if options.output is not None else []
        # a state may be resumed from and saved to the same file: it is read before it is written
        check_distinct(read, during + after)
        if options.resume is not None:
            check_distinct([options.resume], [path for path in (options.output, options.stats) if path])
        for path in after:
            check_writable(path)

    def _write_report(self) -> None:
        import msgspec

        from streamssm.atomic import write_bytes

        if self.options.stats is not None:
            write_bytes(self.options.stats, msgspec.json.encode(self.report.summary()) + b"\n")
        if not self.options.quiet:
            click.echo(self.report.text(), err=True)
