"""Rows to an output in a format, from its beginning or from where a run that was saved had left it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamssm.cli.output import Output
from streamssm.errors import UsageError
from streamssm.rows import Row
from streamssm.running.snapshot import SavedOutput
from streamssm.sinks.base import Format


class Sink:
    """What is written. ``resumed`` is the saved run's format and output: a file of the same name is cut to
    its length and goes on, standard output just goes on, and another file begins anew.

    Raises:
        OutputError: the file cannot be opened, or is shorter than it was.
        UsageError: files of this format cannot be continued.
    """

    def __init__(
        self,
        form: Format,
        path: Path | None,
        resumed: tuple[dict[str, Any] | None, SavedOutput | None] | None = None,
    ):
        self._format, self._path = form, path
        state, output = (None, None) if resumed is None else resumed
        if state is not None:
            form.restore(state)
        at = None if output is None or not same_output(output, path) else output.length
        if at is not None and path is not None and not form.appendable:
            raise UsageError(f"a file of {form.name} cannot be continued; name another one with -o")
        self._output = Output(path, at)
        self.is_terminal = self._output.is_terminal
        self.sync: Callable[[], None] = self._output.sync
        if at is None:
            self._output.write(form.begin())

    def write(self, rows: Sequence[Row]) -> None:
        """Write what the format makes of these rows.

        Raises:
            BrokenPipeError: the reader of standard output has gone.
            OutputError: the disk is full, or the like.
        """
        self._output.write(self._format.rows(rows))

    def written(self) -> tuple[dict[str, Any], SavedOutput]:
        """The state of the format and of the output, for a snapshot."""
        path = self._path
        name, real = (None, None) if path is None else (str(path), os.path.realpath(path))
        return self._format.state(), SavedOutput(self._output.position, name, real)

    def end(self) -> None:
        """Write the tail."""
        self._output.write(self._format.end())
        self._output.finish(self._format.finish)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.__exit__(kind, error, trace)


def same_output(saved: SavedOutput, path: Path | None) -> bool:
    """Whether a run writes where the saved one did."""
    if path is None or saved.path is None:
        return path is None and saved.path is None
    return saved.path == str(path) or saved.real == os.path.realpath(path)
