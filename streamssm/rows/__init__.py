"""What a model's outputs say, as rows of plain data: events, items, tokens or audio."""

from __future__ import annotations

from collections.abc import Callable

from streamssm.errors import UsageError
from streamssm.manifest import Manifest
from streamssm.rows.audio import AudioRows
from streamssm.rows.base import Column, Row, Rows
from streamssm.rows.events import EventRows
from streamssm.rows.items import ItemRows

__all__ = ["AudioRows", "Column", "EventRows", "ItemRows", "Row", "Rows", "make_rows"]


_KINDS: dict[str, Callable[[Manifest], Rows]] = {"events": EventRows, "items": ItemRows, "audio": AudioRows}


def make_rows(manifest: Manifest, emit: str | None) -> Rows:
    """The rows to write: as asked, else events where the model has a rule for them, else items.

    Raises:
        UsageError: there are no such rows, or the model cannot give them.
    """
    kind = emit or ("events" if manifest.events is not None else "items")
    if kind not in _KINDS:
        raise UsageError(f"emit = {kind!r} is none of {', '.join([*_KINDS, 'tokens'])}")
    return _KINDS[kind](manifest)
