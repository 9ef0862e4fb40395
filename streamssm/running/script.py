"""``model.run(source)``: the rows of a run, one after the other, for scripts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

from streamssm.errors import InputError, SourceError, UsageError
from streamssm.live.queue import Queue
from streamssm.live.source import LiveSource
from streamssm.manifest import Manifest
from streamssm.report import RunReport
from streamssm.rows.base import Row
from streamssm.running.choice import choose_encoder, choose_rows
from streamssm.running.loop import Loop
from streamssm.running.opening import open_queued
from streamssm.sources.base import Request, Source
from streamssm.waiting import Stop

if TYPE_CHECKING:
    from streamssm.model import Model
    from streamssm.stream import Stream


class Run(Iterator[Row]):
    """The rows of one run, made by :meth:`Model.run`. Reading goes on as they are asked for.

    Leaving a ``with`` block, or letting go of the run, closes the source. A run belongs to one thread at a
    time; :meth:`stop` may be called from any.
    """

    def __init__(self, loop: Loop, found: deque[Row]):
        """Use :meth:`Model.run`."""
        self._loop = loop
        self._rows = _rows(loop, found)

    @property
    def report(self) -> RunReport:
        """Items, latencies, gaps and drops so far."""
        return self._loop.report

    @property
    def source(self) -> Source:
        """Where the items come from."""
        return self._loop.source

    def __next__(self) -> Row:
        return next(self._rows)

    def stop(self) -> None:
        """End the run soon, also from a signal handler: a wait for input is left, and the rows that follow
        are the last ones."""
        self._loop.stop.request()

    def close(self) -> None:
        """Close the source; no rows follow."""
        self._rows.close()
        self._loop.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request_of(manifest: Manifest, queue: Queue, reading: Mapping[str, Any]) -> Request:
    """What :meth:`Model.run` was told about reading.

    Raises:
        UsageError: there is no such argument.
    """
    known = {field.name for field in fields(Request)} - {"input", "encoder", "queue"}
    if unknown := sorted(set(reading) - known):
        raise UsageError(
            f"run() takes no argument {', '.join(unknown)}; of reading: {', '.join(sorted(known))}"
        )
    return Request(manifest.input, queue=queue, **reading)


def start(
    model: Model,
    source: str | os.PathLike[str] | Source,
    stream: Stream,
    request: Request,
    *,
    emit: str | None,
    decide: float | None,
    chunk: int | None,
    on_gap: str,
) -> Run:
    """What :meth:`Model.run` does with its arguments.

    Raises:
        UsageError: an argument is out of range, or they contradict each other.
        SourceError: the source cannot be opened, or does not fit the model.
    """
    if on_gap not in ("fill", "skip"):
        raise UsageError(f"on_gap = {on_gap!r} is neither 'fill' nor 'skip'")
    size = stream.block if chunk is None else chunk
    if size < 1:
        raise UsageError(f"chunk = {chunk} items is not positive")
    rows, alphabet = choose_rows(model, emit, decide)
    encoder = choose_encoder(rows, alphabet)
    if not isinstance(source, Source):
        source = open_queued(os.fspath(source), replace(request, encoder=encoder), size)
    report, found = RunReport(model.manifest, stream.block), deque[Row]()
    report.inbox = source.inbox if isinstance(source, LiveSource) else None
    report.notes = source.notes
    fill = on_gap == "fill"
    loop = Loop(
        stream, rows, source, found.extend, report, chunk=size, fill=fill, encoder=encoder, stop=Stop()
    )
    return Run(loop, found)


# Not a method, so that a run that nobody holds any more is closed at once.
def _rows(loop: Loop, found: deque[Row]) -> Generator[Row, None, None]:
    with loop.source:
        try:
            while loop.advance():
                yield from _taken(found)
        except (SourceError, InputError):
            loop.give_up()
            yield from _taken(found)
            raise
        loop.finish()
        yield from _taken(found)


def _taken(found: deque[Row]) -> Iterator[Row]:
    while found:
        yield found.popleft()
