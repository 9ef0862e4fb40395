"""How rows are written down: one file a format, chosen by ``--format`` or the name of the output.

Importing this imports no format, so that the command line can show its help at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from streamssm.errors import UsageError

if TYPE_CHECKING:
    from streamssm.manifest import Manifest
    from streamssm.rows.base import Rows
    from streamssm.sinks.base import Format

__all__ = ["FORMATS", "make_format", "name_of"]


def make_format(
    name: str | None, path: Path | None, manifest: Manifest, rows: Rows, uri: str = "-"
) -> Format:
    """The format to write ``rows`` in: the one named, else the one that the suffix of ``path`` says, else
    JSON lines, or wav for audio. ``uri`` is the source; rttm names it.

    Raises:
        UsageError: the format cannot carry such rows, or is binary and would go to a terminal.
        OutputError: a library that it needs is not installed.
    """
    chosen = name_of(name, path) or ("wav" if rows.kind == "audio" else "jsonl")
    if rows.kind == "audio" and not chosen.startswith("wav"):
        raise UsageError(f"--emit audio is written as wav, not {chosen}; for numbers use --emit items")
    made = FORMATS[chosen](manifest, rows, uri)
    if made.binary and path is None and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError(f"{chosen} is not for a terminal; write it to a file with -o, or into a pipe")
    return made


def name_of(name: str | None, path: Path | None) -> str | None:
    """The format that the user named, or else the suffix of ``path``; None if neither says one."""
    if name is not None:
        return name
    suffix = "" if path is None else path.suffix.lower().removeprefix(".")
    return suffix if suffix in FORMATS else None


def _jsonl(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.jsonl import JsonLines

    return JsonLines()


def _csv(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.table import Csv

    return Csv(manifest, rows)


def _rttm(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.rttm import Rttm

    return Rttm(rows, uri)


def _vtt(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.captions import WebVtt

    return WebVtt(rows)


def _srt(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.captions import SubRip

    return SubRip(rows)


def _txt(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.table import TabText
    from streamssm.sinks.text import LabelTrack, PlainText

    if rows.kind == "tokens":
        return PlainText()
    return LabelTrack(rows) if rows.kind == "events" else TabText(rows)


def _wav(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.wav import Wav

    return Wav(manifest, rows)


def _wav16(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.wav import Wav16

    return Wav16(manifest, rows)


def _parquet(manifest: Manifest, rows: Rows, uri: str) -> Format:
    from streamssm.sinks.parquet import Parquet

    return Parquet(manifest, rows)


#: in the order in which ``--format`` lists them
FORMATS: Mapping[str, Callable[[Manifest, Rows, str], Format]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "rttm": _rttm,
    "vtt": _vtt,
    "srt": _srt,
    "txt": _txt,
    "wav": _wav,
    "wav16": _wav16,
    "parquet": _parquet,
}
