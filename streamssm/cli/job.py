"""One ``streamssm run``: everything is checked and opened, then the loop runs, then the end is written."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from streamssm import clock
from streamssm.atomic import write_bytes
from streamssm.cli.amount import to_items
from streamssm.cli.app import EXIT_INTERRUPTED, forget_stdout
from streamssm.cli.interrupt import Interrupt
from streamssm.cli.meter import Meter
from streamssm.cli.output import check_distinct, check_writable
from streamssm.cli.sink import Sink
from streamssm.cli.tokens import Continuation, choose, format_name
from streamssm.errors import InputError, OutputError, SnapshotError, SourceError, UsageError
from streamssm.live.queue import Queue
from streamssm.live.source import LiveSource
from streamssm.model import Model
from streamssm.report import RunReport
from streamssm.rows.tokens import TokenRows
from streamssm.running.choice import choose_encoder
from streamssm.running.loop import Loop, Place
from streamssm.running.opening import open_queued
from streamssm.running.place import Origin, go_to, path_of
from streamssm.running.snapshot import SavedRun, Saver, Snapshots, read_saved
from streamssm.sinks import make_format
from streamssm.sources import Request, Source
from streamssm.waiting import Interrupted

if TYPE_CHECKING:
    from streamssm.cli.run import Options
    from streamssm.stream import Stream


class Job:
    """A run, set up so that whatever can be refused is refused before any work."""

    def __init__(self, model: Model, options: Options):
        self.options, self.model = options, model
        self._check_options()
        self._check_files()
        self.rows, alphabet = choose(model, options)
        self.encoder = choose_encoder(self.rows, alphabet)
        self.format = make_format(
            format_name(options), options.output, model.manifest, self.rows, options.source
        )
        if options.save_every is not None and not self.format.appendable:
            raise UsageError(
                f"--save-every: a file of {self.format.name} cannot be continued; write another format"
            )
        self.saved: SavedRun | None = None
        self.stream = self._open_stream()
        rate = clock.input_rate(model.manifest)
        self.chunk = self.stream.block if options.chunk is None else to_items(options.chunk, rate, "--chunk")
        self.request = self._request()
        self.report = RunReport(model.manifest, self.stream.block)
        self._told = 0  # notes of the source

    def go(self) -> int:
        """Run to the end of the source, or to a signal; return the exit code."""
        with Interrupt() as interrupt:
            try:
                self._run(interrupt)
            except BrokenPipeError:
                self._write_stats()
                if self.options.save_state is None:
                    return forget_stdout()
                raise OutputError(self._closed()) from None
            except KeyboardInterrupt:
                # nobody reads what is left, and writing it again would wait for them again
                with suppress(OSError):
                    forget_stdout()
                raise
            return EXIT_INTERRUPTED if interrupt.requested else 0

    def _run(self, interrupt: Interrupt) -> None:
        with ExitStack() as stack:
            try:
                with interrupt.stop.leaving():
                    source, origin, place = self._open_source(stack)
            except Interrupted:
                return  # before there was anything to work on
            sink = stack.enter_context(Sink(self.format, self.options.output, self._written()))
            run = _Running(self, source, origin, place, sink, interrupt)
            stack.callback(run.close)
            try:
                run.go()
            except (SourceError, InputError):
                self._write_stats()
                raise
        self._write_stats()
        self.say(self.report.text())

    # What is refused before any work.

    def _check_options(self) -> None:
        options = self.options
        if options.save_every is not None and options.save_state is None:
            raise UsageError("--save-every says how often; say where with --save-state FILE")
        if options.from_start and options.resume is None:
            raise UsageError("--from-start is for a run that goes on with --resume; leave it out")
        if options.decide is not None and options.generate is not None:
            raise UsageError("--decide and --generate exclude each other; give one")

    def _check_files(self) -> None:
        options = self.options
        read = [Path(self.model.path), path_of(options.source)]
        after = [path for path in (options.save_state, options.stats) if path is not None]
        during = [options.output] if options.output is not None else []
        # a state may be resumed from and saved to the same file: it is read before it is written
        check_distinct(read, during + after)
        if options.resume is not None:
            check_distinct([options.resume], [path for path in (options.output, options.stats) if path])
        for path in after:
            check_writable(path)

    def _request(self) -> Request:
        options = self.options
        number, unit = options.queue or (None, None)
        rate = clock.input_rate(self.model.manifest)
        items = None if options.queue is None else to_items(options.queue, rate, "--queue")
        queue = Queue(
            items if unit == "" else None,
            None if number is None or unit == "" else (number / 1000 if unit == "ms" else number),
            options.on_overrun,  # type: ignore[arg-type]
            options.spill_limit,
        )
        return Request(
            self.model.manifest.input,
            options.input_format,
            options.rate,
            options.channels,
            options.channel,
            self.encoder,
            names=options.columns,
            time_column=options.time_column,
            on_bad=options.on_bad,  # type: ignore[arg-type]
            allow_truncated=options.allow_truncated,
            queue=queue,
            reconnect=options.reconnect,
            max_message=options.max_message,
        )

    # What was saved.

    def _open_stream(self) -> Stream:
        options, model = self.options, self.model
        path = options.resume
        if path is not None and path == options.save_state and not path.exists():
            self.say(f"{path} is not there yet: starting anew")
            path = None
        if path is None:
            return model.stream(options.block, allow_nonfinite=options.allow_nonfinite, in_place=True)
        allow = options.allow_nonfinite or None  # without the flag, as the stream was saved
        try:
            stream = model.resume(path, options.block, allow, in_place=True)
        except SnapshotError as error:
            raise SnapshotError(f"--resume {path}: {error}") from error
        self.saved = read_saved(stream, path, self.rows)
        self.rows.restore(self.saved.rows)
        return stream

    def _written(self) -> Any:
        return None if self.saved is None else (self.saved.format, self.saved.output)

    def _open_source(self, stack: ExitStack) -> tuple[Source, Origin, Place]:
        """The source, at the place where to go on."""
        options, saved = self.options, self.saved
        source = stack.enter_context(open_queued(options.source, self.request, self.chunk))
        self.tell(source)
        origin = Origin(options.source, source, self.request)
        place = None
        if saved is not None and not options.from_start:
            place = origin.find(saved.source)
        self._restore_text(place)
        origin.text = None if self.encoder is None else self.encoder.state()
        if place is None:
            self._say_begins()
            return source, origin, Place()
        if not place.complete:
            go_to(source, place)
        self.say(_continued(options.source, place))
        return source, origin, place

    def _restore_text(self, place: Place | None) -> None:
        """What the encoder held: where it was saved, or before a text that is about to be read again."""
        if self.encoder is None or self.saved is None:
            return
        again = place is not None and not place.complete
        state = self.saved.text_start if again else self.saved.text
        if state is not None:
            self.encoder.restore(state)

    # What is said on standard error.

    def say(self, line: str) -> None:
        """Tell the user something about the run."""
        if not self.options.quiet:
            click.echo(line, err=True)

    def _say_begins(self) -> None:
        """That a run goes on with a file that may have been taken in part."""
        if self.saved is None:
            return
        source, before = self.options.source, self.saved.source
        if before is not None and not before.complete:
            self.say(f"{source} is taken from its beginning; the state is of {before.uri}")
        elif before is None and path_of(source).is_file():
            self.say(f"{source} is taken from its beginning; the state is of no place in a file")

    def tell(self, source: Source) -> None:
        """What the source says about itself, once each."""
        notes = source.notes
        for note in notes[self._told :]:
            self.say(note)
        self._told = len(notes)

    def _closed(self) -> str:
        state = "the state is that of the last save" if self.report.saves else "no state was saved"
        return f"{self.options.output or 'standard output'} was closed before the end; {state}"

    def _write_stats(self) -> None:
        if self.options.stats is not None:
            write_bytes(self.options.stats, msgspec.json.encode(self.report.summary()) + b"\n")


class _Running:
    """The loop of a job with all that hangs on it."""

    def __init__(
        self, job: Job, source: Source, origin: Origin, place: Place, sink: Sink, interrupt: Interrupt
    ):
        self._job, self._options, self._sink, self._interrupt = job, job.options, sink, interrupt
        self._meter = Meter(job.report, None if source.total is None else source.total - place.items)
        self._loop = Loop(
            job.stream,
            job.rows,
            source,
            self._write,
            job.report,
            chunk=job.chunk,
            fill=job.options.on_gap == "fill",
            encoder=job.encoder,
            stop=interrupt.stop,
        )
        self._loop.place = place
        job.report.inbox = source.inbox if isinstance(source, LiveSource) else None
        self._snapshots = Snapshots(self._loop, origin, sink.written)
        if job.saved is not None:
            self._snapshots.restore(job.saved)
        self._saver: Saver | None = None
        if job.options.save_state is not None:
            self._saver = Saver(job.options.save_state, self._snapshots, sink.sync, self._loop)
            if job.options.save_every is not None:
                self._saver.start(job.options.save_every)

    def go(self) -> None:
        """Run to the end, and write the end."""
        loop = self._loop
        try:
            while loop.advance():
                self._show()
        except SourceError:
            # what came before the damage is complete
            self._end(damaged=True)
            raise
        except InputError:
            # the step was left half done: what was saved last is where to go on
            if self._saver is None:
                self._end(damaged=True)
            raise
        self._end(damaged=False)

    def close(self) -> None:
        """Whatever happened, leave the terminal as it was and no thread at work."""
        self._meter.clear()
        if self._saver is not None:
            self._saver.close()

    def _show(self) -> None:
        loop = self._loop
        if len(loop.source.notes) > self._job._told:
            self._meter.clear()
            self._job.tell(loop.source)
        if loop.latest is not None:
            self._meter.update(loop.latest)

    def _write(self, rows: Any) -> None:
        if self._sink.is_terminal:
            self._meter.clear()
        self._sink.write(rows)

    def _end(self, damaged: bool) -> None:
        """Save the stream for another run, or end it; before that, continue the text if asked to."""
        loop, options = self._loop, self._options
        self._meter.clear()
        if self._saver is not None:
            self._saver.stop()
        if options.generate is not None and not damaged:
            loop.end_text(closing=False)
            self._continue()
        elif self._saver is None:
            loop.give_up() if damaged else loop.finish()
        self._job.report.notes = loop.source.notes
        # the tail is no part of what a run that goes on continues: it is cut off again
        data = None if self._saver is None else self._snapshots.take()
        self._sink.end()
        if self._saver is not None and data is not None:
            self._saver.save(data)
        self._job.tell(loop.source)

    def _continue(self) -> None:
        rows = self._job.rows
        assert isinstance(rows, TokenRows)  # chosen for --generate
        continuation = Continuation(self._job.model, self._loop.stream, rows, self._options)
        continuation.write(self._sink, self._job.report, self._interrupt)
        self._loop.stream = continuation.stream


def _continued(uri: str, place: Place) -> str:
    if place.complete:
        return f"{uri} was complete when the state was saved: nothing is left (--from-start takes it again)"
    record = "" if place.record is None else f" of {place.record}"
    records = f", after {place.records} records" if place.records else ""
    return f"{uri} goes on at item {place.items}{record}{records}"
