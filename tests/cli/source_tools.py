"""What the tests of sources share."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from streamssm.manifest import Input
from streamssm.sources import Request, open_source
from streamssm.sources.base import Gap, Source

MONO = Input("audio", "samples", "float32", (), rate=8000.0)
PAIR = Input("audio", "samples", "float32", (2,), rate=8000.0)
ROWS = Input("x", "features", "float32", (3,), rate=50.0)
BYTES = Input("ids", "tokens", "int64", (), vocabulary=256)
IDS = Input("ids", "tokens", "int64", (), vocabulary=5)
DNA = Input("bases", "tokens", "int64", (), vocabulary=5, alphabet="nucleotides")


def pieces(source: Source, count: int) -> Iterator[tuple[np.ndarray, tuple[Gap, ...]]]:
    """Every read of one record, the last one of no items included."""
    while True:
        items = source.read(count)
        yield items, tuple(source.gaps)
        if not len(items):
            return


def everything(uri: object, wanted: Input, count: int = 7, **options: Any) -> np.ndarray:
    """All items of a source without records, read ``count`` at a time."""
    with open_source(str(uri), Request(wanted, **options)) as source:
        items = np.concatenate([part for part, _ in pieces(source, count)])
        assert source.total in (None, len(items))
        assert source.record is None
        assert not source.more
    return items


def records(source: Source, count: int) -> list[tuple[str, np.ndarray]]:
    """The records of a source with their names and items."""
    found, more = [], True
    while more:
        items = np.concatenate([part for part, _ in pieces(source, count)])
        if source.record is not None:
            found.append((source.record, items))
        assert source.record is not None or not len(items)
        more = source.more
    return found


def notes_of(uri: object, wanted: Input, **options: Any) -> str:
    """What a source says to the user, after all was read."""
    with open_source(str(uri), Request(wanted, **options)) as source:
        more = True
        while more:
            for _ in pieces(source, 1000):
                pass
            more = source.more
        return "\n".join(source.notes)


def give_stdin(monkeypatch: Any, data: bytes) -> None:
    """Make ``data`` the standard input of this process."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
