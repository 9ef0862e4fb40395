"""Protocol 1, as docs/serve.md defines it: what a query asks for, and the messages in both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from streamssm.errors import InputError, StreamSSMError, UsageError
from streamssm.manifest import Input, Manifest
from streamssm.sources.base import Array, Request
from streamssm.sources.convert import Converter
from streamssm.sources.raw import ENCODINGS

if TYPE_CHECKING:
    from streamssm.model import Model

Message = dict[str, Any]

_KEYS = {"model", "emit", "rate", "channels", "encoding", "levels", "stats", "token"}
_ENCODINGS = ("f32le", "s16le")
_EMITS = ("events", "items", "none")
TEXT = 1 << 17  # bytes of numbers as text in a message: to read them takes its time
SLICE = 8192  # items given to the model at a time, so that a large message does not hold up the others


class Asked(msgspec.Struct, frozen=True):
    """The query of a stream."""

    model: str | None = None
    emit: str | None = None
    rate: float | None = None
    channels: int | None = None
    encoding: str = "f32le"
    levels: bool = False
    stats: bool = False


class Command(msgspec.Struct, frozen=True):
    """A text message of a client; ``x`` belongs to inputs, ``id`` to pings."""

    type: str
    x: msgspec.Raw = msgspec.Raw(b"")
    id: Any = None


def parse_query(query: Mapping[str, str]) -> Asked:
    """What a client asks for.

    Raises:
        UsageError: an unknown name, or a value that makes no sense.
    """
    if unknown := sorted(set(query) - _KEYS):
        raise UsageError(f"the query says {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    values = {name: text for name, text in query.items() if name != "token"}
    for flag in ("levels", "stats"):
        if values.get(flag, "0") not in ("0", "1"):
            raise UsageError(f"{flag}={values[flag]} is neither 0 nor 1")
    try:
        asked = msgspec.convert(values, Asked, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"the query cannot be read: {error}") from error
    if asked.encoding not in _ENCODINGS:
        raise UsageError(f"encoding={asked.encoding} is none of {', '.join(_ENCODINGS)}")
    if asked.emit not in (None, *_EMITS):
        raise UsageError(f"emit={asked.emit} is none of {', '.join(_EMITS)}")
    if asked.rate is not None and not 0 < asked.rate < math.inf:
        raise UsageError(f"rate={asked.rate:g} is no number of frames a second")
    if asked.channels is not None and not 1 <= asked.channels <= 256:
        raise UsageError(f"channels={asked.channels} is not a number from 1 to 256")
    return asked


def parse_command(text: str | bytes) -> Command:
    """A text message.

    Raises:
        InputError: no JSON object with a type.
    """
    try:
        return msgspec.json.decode(text, type=Command)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f'the message is no {{"type": ...}}: {error}') from error


def encode(message: Message) -> str:
    """A message as text; NaN becomes null."""
    return msgspec.json.encode(message).decode()


def error_message(error: BaseException, fatal: bool) -> Message:
    """An error, of ours by name; of others the client learns no more than that."""
    known = isinstance(error, StreamSSMError)
    return {
        "type": "error",
        "error": type(error).__name__ if known else "StreamSSMError",
        "message": str(error) if known else "the server failed; its log says why",
        "fatal": fatal,
    }


def describe_outputs(manifest: Manifest) -> list[Message]:
    """What comes out of a model; ``per_item`` is output items for each input item."""
    return [
        {
            "name": output.name,
            "kind": output.kind,
            "shape": list(output.shape),
            "labels": list(output.labels),
            "per_item": float(output.per_item),
        }
        for output in manifest.outputs
    ]


def describe_input(spec: Input) -> Message:
    """What goes in."""
    return {
        "kind": spec.kind,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "rate": spec.rate,
        "hop": spec.hop,
        "vocabulary": spec.vocabulary,
    }


def describe_model(model: Model, block: int) -> Message:
    """What the list of models says of one."""
    manifest = model.manifest
    rule = manifest.events
    return {
        "name": manifest.name,
        "description": manifest.description,
        "license": manifest.license,
        "sha256": model.sha256,
        "rate": manifest.input.rate,
        "hop": manifest.input.hop,
        "block": block,
        "lookahead": manifest.lookahead,
        "input": describe_input(manifest.input),
        "outputs": describe_outputs(manifest),
        "events": None if rule is None else msgspec.to_builtins(rule),
        "state_bytes": manifest.state_bytes,
    }


class Intake:
    """Messages to items: decoded, mixed and resampled as the query says.

    A message is taken whole or refused whole.

    Raises:
        StreamSSMError: what the query says does not fit the model.
    """

    def __init__(self, spec: Input, asked: Asked):
        self._spec = spec
        self._tokens = spec.kind == "tokens"
        columns = math.prod(spec.shape)
        self._channels = columns if asked.channels is None else asked.channels
        self._encoding = ENCODINGS[asked.encoding]
        self._converter: Converter | None = None
        if self._tokens:
            if asked.rate is not None or asked.channels is not None:
                raise UsageError("tokens have neither a rate nor channels; leave them out")
            return
        rate = spec.rate if asked.rate is None else asked.rate
        self._converter = Converter("the stream", rate, self._channels, Request(spec))

    @property
    def exact(self) -> bool:
        """Whether nothing is remembered here, so that a snapshot of the stream has it all."""
        return self._converter is None or self._converter.one_to_one

    def binary(self, data: bytes) -> Array:
        """The frames ``[n, channels]`` of a binary message.

        Raises:
            InputError: no whole number of frames, or the model takes tokens.
        """
        if self._tokens:
            raise InputError('the model takes tokens; send them as text: {"type": "input", "x": [1, 2]}')
        frame = self._encoding.nbytes * self._channels
        if len(data) % frame:
            raise InputError(f"{len(data)} bytes are no whole number of frames of {frame}; send whole frames")
        return self._encoding.decode(data).reshape(-1, self._channels)

    def values(self, raw: msgspec.Raw) -> Array:
        """The frames, or tokens, of a text message.

        Raises:
            InputError: not the numbers that the model takes, or more than others should wait for.
        """
        if len(bytes(raw)) > TEXT:
            raise InputError(f"x is {len(bytes(raw))} bytes of text, the limit is {TEXT}; send it in parts")
        if self._tokens:
            return np.array(_decode(raw, list[int]), np.int64)
        rows = _decode(raw, list[list[float]] if self._nested(raw) else list[float])
        wrong = {len(row) for row in rows if isinstance(row, list)} - {self._channels}
        if wrong:
            raise InputError(f"a row of x has {min(wrong)} numbers, not {self._channels}")
        with np.errstate(over="ignore"):
            return np.array(rows, np.float32).reshape(-1, self._channels)

    def _nested(self, raw: msgspec.Raw) -> bool:
        """Whether rows are lists; those of one number may be."""
        return self._channels > 1 or re.match(rb"\s*\[\s*\[", bytes(raw)) is not None

    def as_items(self, frames: Array) -> Array:
        """The items of these frames, where every frame is one: where it is :meth:`exact`."""
        return frames if self._converter is None else self._converter.push(frames)

    def items(self, frames: Array) -> Iterator[Array]:
        """The items that become known by these frames, a slice at a time."""
        if self._converter is None:
            yield frames
            return
        size = max(1, min(SLICE, self._converter.needed(SLICE)))
        for at in range(0, len(frames), size):
            yield self._converter.push(frames[at : at + size])

    def tail(self) -> Array:
        """What the end of the sequence makes known; then a new one can begin."""
        if self._converter is None:
            return np.zeros(0, np.int64)
        return self._converter.flush()


def sound(frames: Array) -> Array:
    """The frames of a message that is taken in parts.

    Raises:
        InputError: NaN or infinity among them.
    """
    if not np.isfinite(frames).all():
        raise InputError("the message holds NaN or infinity; nothing of it was taken")
    return frames


def _decode(raw: msgspec.Raw, kind: Any) -> Any:
    if not bytes(raw):
        raise InputError('an input needs its numbers: {"type": "input", "x": [...]}')
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(f"x cannot be read: {error}") from error
