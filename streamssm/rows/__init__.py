"""What a model's outputs say, as rows of plain data: events, items, tokens or audio."""

from __future__ import annotations

from streamssm.manifest import Manifest
from streamssm.rows.audio import AudioRows
from streamssm.rows.base import Column, Row, Rows
from streamssm.rows.events import EventRows
from streamssm.rows.items import ItemRows

__all__ = ["AudioRows", "Column", "EventRows", "ItemRows", "Row", "Rows", "make_rows"]


def make_rows(manifest: Manifest, emit: str | None) -> Rows:
    """The rows to write: as asked, else events where the model has a rule for them, else items."""
    kind = emit or ("events" if manifest.events is not None else "items")
    if kind == "audio":
        return AudioRows(manifest)
    return EventRows(manifest) if kind == "events" else ItemRows(manifest)
