"""Where a stream's items come from: one file a kind of source, opened by URI through this registry.

A source is a path, a folder, ``-`` for standard input, ``mic``, or ``SCHEME:REST``. The format of a file is
told by ``--input-format``, else by its suffix, else by what the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from streamssm import clock
from streamssm.errors import SourceError, UsageError
from streamssm.sources import (
    audio,
    container,
    folder,
    gz,
    jsonl,
    npy,
    raw,
    reads,
    stdin,
    table,
    tail,
    text,
    wav,
)
from streamssm.sources.base import Request, Source, check_names
from streamssm.sources.sim import SimSource

__all__ = ["FORMATS", "SCHEMES", "Request", "Source", "open_source"]

FileOpener = Callable[[Path, Request], Source]

FORMATS: Mapping[str, FileOpener] = {
    "wav": wav.open_file,
    "audio": audio.open_file,
    "npy": npy.open_file,
    "csv": table.open_file,
    "json": jsonl.open_file,
    "jsonl": jsonl.open_file,
    "bytes": text.open_file,
    "text": text.open_file,
    **dict.fromkeys(reads.FORMATS, reads.open_file),
    **dict.fromkeys(raw.ENCODINGS, raw.open_file),
}

_AUDIO = {".wav": "wav", ".wave": "wav", **dict.fromkeys((*audio.SUFFIXES, *container.SUFFIXES), "audio")}
_ROWS = {".npy": "npy", ".csv": "csv", ".tsv": "csv", **dict.fromkeys(jsonl.SUFFIXES, "jsonl")}
SUFFIXES: Mapping[str, str] = {**_AUDIO, **_ROWS}
#: sources that come by themselves, and what opens them
_LIVE: Mapping[str, tuple[str, str]] = {
    "mic": ("microphone", "open_microphone"),
    "ws": ("websocket", "open_websocket"),
    "wss": ("websocket", "open_websocket"),
    "mqtt": ("mqtt", "open_mqtt"),
    "mqtts": ("mqtt", "open_mqtt"),
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
    if scheme in _LIVE and (colon or scheme == "mic"):
        return _open_live(uri, scheme, request)
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](rest, request)
    if "://" in uri:
        known = ", ".join([*(f"{name}:FILE" for name in SCHEMES), "mic", *(f"{name}://" for name in _LIVE)])
        raise SourceError(f"{scheme}:// is not a source of this version; use a file, - or {known}")
    return open_file(uri, request)


def open_file(path: str, request: Request) -> Source:
    """Open a file, or a folder of files, by its path."""
    place = Path(path)
    if place.is_dir():
        return folder.open_folder(
            place, request, folder_suffixes(request), lambda file: _open_path(file, request)
        )
    return _open_path(place, request)


def open_sim(path: str, request: Request) -> Source:
    """Open a file that is paced to the model's rate."""
    if request.input.rate is None:
        raise UsageError(
            "sim: paces a file by the model's rate, but this model has none; give the file alone"
        )
    if path == "-":
        raise UsageError("sim: paces files; standard input comes at its own pace")
    return SimSource(open_file(path, request), clock.exact(request.input.rate))


SCHEMES: Mapping[str, Callable[[str, Request], Source]] = {
    "file": open_file,
    "sim": open_sim,
    "tail": tail.open_tail,
}


def _open_path(path: Path, request: Request) -> Source:
    name = request.format if request.format != "auto" else _guess(path, request)
    check_names(name, request)
    return FORMATS[name](path, request.with_format(name))


def _open_live(uri: str, scheme: str, request: Request) -> Source:
    module, opener = _LIVE[scheme]
    source: Source = getattr(import_module(f"streamssm.sources.{module}"), opener)(uri, request)
    return source


def _guess(path: Path, request: Request) -> str:
    suffix = gz.suffix_of(path)
    if reads.takes_reads(request.input) and (found := reads.guess(path, suffix)) is not None:
        return found
    if text.takes_text(request):
        return "npy" if suffix == ".npy" else "bytes"
    fallback = "audio" if request.input.kind == "samples" else "csv"
    return SUFFIXES.get(suffix, fallback)


def folder_suffixes(request: Request) -> tuple[str, ...]:
    """Of the files in a folder that can feed the model."""
    if request.input.kind == "samples":
        return tuple(_AUDIO)
    if request.input.kind == "features":
        return (*_ROWS, *(suffix + ending for suffix in _ROWS for ending in gz.SUFFIXES if suffix != ".npy"))
    return ()
