"""Where a stream's items come from: one file a kind of source, opened by URI through this registry.

A source is a path, ``-`` for standard input, or ``SCHEME:REST``. The format of a file is told by
``--input-format``, else by its suffix, else by what the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from streamssm import clock
from streamssm.errors import SourceError, UsageError
from streamssm.sources import audio, npy, raw, stdin, table, text, wav
from streamssm.sources.base import Request, Source
from streamssm.sources.sim import SimSource

__all__ = ["FORMATS", "SCHEMES", "Request", "Source", "open_source"]

FileOpener = Callable[[Path, Request], Source]

FORMATS: Mapping[str, FileOpener] = {
    "wav": wav.open_file,
    "audio": audio.open_file,
    "npy": npy.open_file,
    "csv": table.open_file,
    "bytes": text.open_file,
    "text": text.open_file,
    **dict.fromkeys(raw.ENCODINGS, raw.open_file),
}

SUFFIXES: Mapping[str, str] = {
    ".wav": "wav",
    ".wave": "wav",
    ".npy": "npy",
    ".csv": "csv",
    ".tsv": "csv",
}


def open_source(uri: str, request: Request) -> Source:
    """Open a source for a model.

    Raises:
        SourceError: it cannot be opened, or does not fit the model.
        UsageError: the options contradict each other or the data.
    """
    if uri == "-":
        return stdin.open_stdin(request)
    scheme, colon, rest = uri.partition(":")
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](rest, request)
    if "://" in uri:
        known = ", ".join(f"{name}:FILE" for name in SCHEMES)
        raise SourceError(f"{scheme}:// is not a source of this version; use a file, - or {known}")
    return open_file(uri, request)


def open_file(path: str, request: Request) -> Source:
    """Open a file by its path."""
    name = request.format if request.format != "auto" else _guess(Path(path), request)
    return FORMATS[name](Path(path), request.with_format(name))


def open_sim(path: str, request: Request) -> Source:
    """Open a file that is paced to the model's rate."""
    if request.input.rate is None:
        raise UsageError(
            "sim: paces a file by the model's rate, but this model has none; give the file alone"
        )
    if path == "-":
        raise UsageError("sim: paces files; standard input comes at its own pace")
    return SimSource(open_file(path, request), clock.exact(request.input.rate))


SCHEMES: Mapping[str, Callable[[str, Request], Source]] = {"file": open_file, "sim": open_sim}


def _guess(path: Path, request: Request) -> str:
    if text.takes_text(request):
        return "npy" if path.suffix.lower() == ".npy" else "bytes"
    fallback = "audio" if request.input.kind == "samples" else "csv"
    return SUFFIXES.get(path.suffix.lower(), fallback)
