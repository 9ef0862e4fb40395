"""Tables on standard output or error: folded to a terminal; to a pipe as they are, without trailing
blanks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 10_000
_COLOURS = {"pass": "green", "fail": "bold red", "skip": "yellow"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Plain columns. Cells are text, not markup: a name may hold brackets."""
    made = Table(*head, box=None, pad_edge=False, show_header=bool(head))
    for row in rows:
        made.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return made


def show(*parts: Table | str, error: bool = False) -> None:
    """Print tables and lines, to standard error if so asked; nothing if the shell closed the stream."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    console = Console(highlight=False, markup=False, stderr=error)
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    console.width = _PIPE_WIDTH
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    stream.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def binary_size(count: int) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 2.0 MiB."""
    if count < 1024:
        return f"{count} B"
    value, units = float(count), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "B"
    while value >= 1024 and (following := next(units, None)) is not None:
        value, unit = value / 1024, following
    return f"{value:.1f} {unit}"
