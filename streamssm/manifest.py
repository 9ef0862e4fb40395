"""The manifest: what a model file says about itself.

It is JSON in the ONNX metadata under the key ``streamssm`` and is decoded strictly:
an unknown field, a missing field or a value of the wrong type is a
:class:`~streamssm.errors.ManifestError`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, Literal

import msgspec

from streamssm.errors import ManifestError

FORMAT = 1
MANIFEST_KEY = "streamssm"
GOLDEN_KEY = "streamssm.golden"
DIGEST_PLACEHOLDER = "0" * 64

InputKind = Literal["samples", "features", "tokens"]
OutputKind = Literal["probability", "logits", "features", "samples"]
DType = Literal["float32", "int64"]
WeightType = Literal["float32", "int8", "int4"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Shape = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
Rate = Annotated[float, msgspec.Meta(gt=0)]


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes in. A chunk has shape ``[T, *shape]``.

    ``rate`` is in items per second (None: no clock, such as tokens). ``hop`` is the
    number of items the graph consumes at a time: every block is a multiple of it.
    """

    name: str
    kind: InputKind
    dtype: DType
    shape: Shape = ()
    rate: Rate | None = None
    hop: int = 1
    vocabulary: Count | None = None
    front_end: str = ""


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What comes out: ``ratio[0] / ratio[1]`` items of ``shape`` for each input item."""

    name: str
    kind: OutputKind
    shape: Shape
    ratio: tuple[int, int] = (1, 1)
    labels: tuple[str, ...] = ()

    @property
    def per_item(self) -> Fraction:
        """Output items per input item."""
        return Fraction(*self.ratio)


class StateTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor that a stream remembers, ``[batch, *shape]``; it starts at zero."""

    name: str
    next: str
    shape: Shape
    dtype: DType = "float32"

    @property
    def nbytes(self) -> int:
        """Bytes for one stream."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 8)


class EventRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Turns one probability column into start and end events, with hysteresis.

    An event starts when the probability has been at least ``onset`` for
    ``min_on`` seconds and ends when it has been below ``offset`` for ``min_off``
    seconds; its times are those of the first item of either run.
    """

    output: str
    label: str
    column: int = 0
    onset: float = 0.5
    offset: float = 0.35
    min_on: float = 0.05
    min_off: float = 0.3


class CertifiedError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An error the exporter measured: largest difference, absolute and relative to
    the largest magnitude of the reference, over ``items`` input items."""

    name: str
    max_abs: float
    max_rel: float
    items: int


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the matrices of large linear layers are stored; everything else is float32.

    Of int8 and int4 weights ``block_size`` inputs of one output share a scale (fewer in matrices that
    have fewer); ``excluded`` names the linear layers that were left float32 on request.
    """

    dtype: WeightType = "float32"
    block_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    excluded: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a host needs to run the model. ``lookahead`` and ``block`` count input
    items; ``sha256`` covers the whole file with its own 64 digits set to zero."""

    format: int
    name: str
    sha256: str
    producer: str
    input: Input
    outputs: tuple[Output, ...]
    states: tuple[StateTensor, ...]
    block: int
    lookahead: int = 0
    parameters: int = 0
    description: str = ""
    license: str = ""
    events: EventRule | None = None
    weights: Weights = Weights()
    errors: tuple[CertifiedError, ...] = ()
    provenance: dict[str, Any] = {}

    @property
    def state_bytes(self) -> int:
        """Bytes of state for one stream."""
        return sum(state.nbytes for state in self.states)

    def encode(self) -> str:
        """The manifest as compact JSON."""
        return msgspec.json.encode(self).decode()


def decode_manifest(text: str | bytes) -> Manifest:
    """Decode and validate a manifest.

    Raises:
        ManifestError: not JSON, a wrong or unknown field, or an unsupported format.
    """
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"the manifest cannot be read: {error}; export the model again") from error
    _validate(manifest)
    return manifest


def _validate(manifest: Manifest) -> None:
    if manifest.format != FORMAT:
        raise ManifestError(
            f"the manifest has format {manifest.format}, this version reads {FORMAT}; upgrade streamssm"
        )
    hop, block, lookahead = manifest.input.hop, manifest.block, manifest.lookahead
    if hop < 1 or block < 1 or block % hop:
        raise ManifestError(f"the block of {block} items is not a positive multiple of the hop of {hop}")
    if lookahead < 0:
        raise ManifestError(f"the look-ahead of {lookahead} items is negative")
    if not manifest.outputs:
        raise ManifestError("the manifest lists no outputs")
    for output in manifest.outputs:
        if min(output.ratio) < 1 or (hop * output.per_item).denominator != 1:
            raise ManifestError(
                f"output {output.name}: the ratio {output.ratio} gives no whole items for a hop of {hop}"
            )
    names = [state.name for state in manifest.states]
    if len(set(names)) != len(names):
        raise ManifestError("two states have the same name")
    if (manifest.weights.dtype == "float32") != (manifest.weights.block_size == 0):
        raise ManifestError(
            f"the manifest gives {manifest.weights.dtype} weights blocks of {manifest.weights.block_size}"
        )
    if manifest.events is not None:
        _validate_events(manifest.events, manifest.outputs)


def _validate_events(rule: EventRule, outputs: tuple[Output, ...]) -> None:
    output = next((output for output in outputs if output.name == rule.output), None)
    if output is None:
        names = ", ".join(output.name for output in outputs)
        raise ManifestError(f"the event rule reads output {rule.output!r}; the model has {names}")
    if len(output.shape) > 1:
        raise ManifestError(f"the event rule reads output {rule.output!r} of shape {output.shape}, not a row")
    columns = math.prod(output.shape)
    if not 0 <= rule.column < columns:
        raise ManifestError(f"the event rule reads column {rule.column} of {columns} in {rule.output!r}")
    if not 0 <= rule.offset <= rule.onset <= 1 or min(rule.min_on, rule.min_off) < 0:
        raise ManifestError(
            f"the event rule has onset {rule.onset}, offset {rule.offset}, min_on {rule.min_on} and "
            f"min_off {rule.min_off}; 0 <= offset <= onset <= 1 and no negative durations must hold"
        )
