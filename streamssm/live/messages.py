"""What a message of a live source says: frames of numbers, and where in the sequence they belong.

JSON: a frame as numbers ``[1, 2, 3]``, several as ``[[1, 2, 3], [4, 5, 6]]``, or of one number each as
``[1, 2, 3]`` or ``1``. An object gives its frames as ``"x"`` (or the name of the model's input), or a
number by name for each column; a list of such objects gives several frames. ``"seq"`` counts
messages, ``"time"`` says when the first frame was taken: a number of seconds or a date and time of ISO 8601.

Binary: frames as in a raw file, little-endian, columns interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Array, Request
from streamssm.sources.raw import ENCODINGS
from streamssm.sources.timeline import moment_of

SEQ, TIME = "seq", "time"
JSON_FORMATS = ("json", "jsonl")
_SHOWN = 40  # characters of a bad message in an error
_FAILURES = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)


class BadMessageError(Exception):
    """Why a message cannot be read."""


@dataclass
class Place:
    """Where a message belongs: its number, the moment of its first frame, and how many frames it holds,
    each as far as it is known."""

    number: int | None = None
    moment: float | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Message:
    """Frames ``[n, channels]``; without any the message is bad, and ``fault`` says why."""

    place: Place
    frames: Array | None = None
    fault: str = ""


class MessageReader:
    """Reads the messages of one source.

    ``channels`` is what a frame of the data holds. Without names the first readable object settles the
    names of the columns and their order; objects after it may hold more, and in another order.

    Raises:
        SourceError: the format is none of messages.
    """

    def __init__(self, name: str, request: Request, channels: int):
        self._input, self._channels = request.input, channels
        self._number: type = float if request.input.dtype == "float32" else int
        self._names = request.names
        self._time = request.time_column or TIME
        self._format = request.format
        if self._format not in ("auto", *JSON_FORMATS, *ENCODINGS):
            known = ", ".join((JSON_FORMATS[0], *ENCODINGS))
            raise SourceError(f"{name} cannot carry {self._format}; messages are {known}")
        self._json = msgspec.json.Decoder()

    @property
    def binary(self) -> str | None:
        """The encoding that was asked for, None for JSON or where nothing was said."""
        return self._format if self._format in ENCODINGS else None

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns of objects, as far as they are known."""
        return self._names

    @property
    def json(self) -> bool:
        """Whether JSON was asked for."""
        return self._format in JSON_FORMATS

    def read_binary(self, data: bytes, encoding: str) -> Message:
        """A message of frames in ``encoding``; bad if it holds a part of a frame, or NaN."""
        return self._read(data, Place(), lambda place: self._decoded(data, encoding, place))

    def read_json(self, data: bytes | str) -> Message:
        """A JSON message; bad if it is no JSON, a column is missing, or what stands there is no number."""
        return self._read(data, Place(), lambda place: self._parsed(data, place))

    def _read(self, data: bytes | str, place: Place, frames: Callable[[Place], Array]) -> Message:
        try:
            found = frames(place)
            self._check(found)
        except BadMessageError as error:
            return Message(place, None, str(error))
        except _FAILURES as error:
            return Message(place, None, f"{_shown(data)}: {error}")
        place.frames = len(found)
        return Message(place, found)

    def _decoded(self, data: bytes, encoding: str, place: Place) -> Array:
        if self._input.dtype != "float32":
            raise BadMessageError(f"binary samples cannot feed a model of {self._input.kind}")
        code = ENCODINGS[encoding]
        frame = code.nbytes * self._channels
        if len(data) % frame:
            raise BadMessageError(f"{len(data)} bytes are not whole frames of {frame} bytes ({encoding})")
        place.frames = len(data) // frame
        return code.decode(data).reshape(-1, self._channels)

    def _parsed(self, data: bytes | str, place: Place) -> Array:
        try:
            value = self._json.decode(data)
        except _FAILURES as error:
            raise BadMessageError(f"{_shown(data)} is not JSON: {error}") from error
        if isinstance(value, dict):
            place.number, place.moment = _number(value.get(SEQ)), _moment(value.get(self._time))
            for key in ("x", self._input.name):
                if key in value and key not in self._names:
                    return self._frames(value[key], place)
        return self._frames(value, place)

    def _frames(self, value: Any, place: Place) -> Array:
        """``[n, channels]``; how many there should be is known before the numbers are looked at."""
        if isinstance(value, dict):
            value = [value]
        elif not isinstance(value, list):
            value = [[value]]
        elif value and not isinstance(value[0], list | dict):
            value = [[one] for one in value] if self._channels == 1 else [value]
        place.frames = len(value) if self._like_frames(value) else None
        if value and isinstance(value[0], dict):
            value = [self._row(one) for one in value]
        rows = msgspec.convert(value, list[list[self._number]])  # type: ignore[name-defined]
        for row in rows:
            if len(row) != self._channels:
                raise ValueError(f"frames have {self._channels} columns, not {len(row)}")
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is refused
            return np.array(rows, self._input.dtype).reshape(-1, self._channels)

    def _like_frames(self, rows: list[Any]) -> bool:
        """Whether these are frames, if perhaps bad ones, and not something else such as a greeting."""
        if not rows:
            return True
        first = rows[0]
        if isinstance(first, dict):
            return any(name in first for name in self._names)
        return isinstance(first, list) and any(isinstance(one, int | float) for one in first)

    def _row(self, value: Mapping[str, Any]) -> list[Any]:
        names = self._names or self._learn(value)
        missing = [name for name in names if name not in value]
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing")
        row = [value[name] for name in names]
        if not self._names:
            msgspec.convert(row, list[self._number])  # type: ignore[name-defined]
            self._names = names
        return row

    def _learn(self, value: Mapping[str, Any]) -> tuple[str, ...]:
        names = tuple(key for key in value if key not in (SEQ, self._time))
        if len(names) != self._channels:
            raise ValueError(
                f"an object of {len(names)} columns, not {self._channels}; name those to use with --columns"
            )
        return names

    def _check(self, frames: Array) -> None:
        if frames.dtype.kind == "f" and not np.isfinite(frames).all():
            raise BadMessageError("a number is NaN, infinite or beyond float32")
        size = self._input.vocabulary
        if size is not None and frames.size and not 0 <= int(frames.min()) <= int(frames.max()) < size:
            raise BadMessageError(f"a token is not in 0 to {size - 1}")


def _number(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadMessageError(f'"{SEQ}" is {_shown(repr(value))}, not a whole number')
    return value


def _moment(value: Any) -> float | None:
    """Seconds since 1970, or since whatever a number counts from."""
    if value is None:
        return None
    try:
        seconds = moment_of(value) if isinstance(value, str) else float(msgspec.convert(value, float))
    except (ValueError, OverflowError, msgspec.ValidationError) as error:
        raise BadMessageError(f'"{TIME}" is {_shown(repr(value))}, no number and no ISO date') from error
    return seconds


def _shown(data: bytes | str) -> str:
    text = data[:_SHOWN].decode("utf-8", "replace") if isinstance(data, bytes) else data[:_SHOWN]
    return repr(text) + ("..." if len(data) > _SHOWN else "")
