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

from streamssm.alphabet import NUCLEOTIDES
from streamssm.errors import ManifestError

FORMAT = 1
MANIFEST_KEY = "streamssm"
GOLDEN_KEY = "streamssm.golden"
TOKENIZER_KEY = "streamssm.tokenizer"
DIGEST_PLACEHOLDER = "0" * 64

InputKind = Literal["samples", "features", "tokens"]
Alphabet = Literal["", "bytes", "nucleotides", "tokenizer"]
OutputKind = Literal["probability", "logits", "features", "samples"]
DType = Literal["float32", "int64"]
WeightType = Literal["float32", "int8", "int4"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Shape = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
Rate = Annotated[float, msgspec.Meta(gt=0)]


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes in. A chunk has shape ``[T, *shape]``.

    ``rate`` is in items per second (None: no clock, such as tokens). ``hop`` is the
    number of items the graph consumes at a time: every block is a multiple of it. ``alphabet`` says
    what tokens stand for ("": nobody knows, or bytes if there are 256); those in ``end`` end a text.
    """

    name: str
    kind: InputKind
    dtype: DType
    shape: Shape = ()
    rate: Rate | None = None
    hop: int = 1
    vocabulary: Count | None = None
    front_end: str = ""
    alphabet: Alphabet = ""
    end: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()

    @property
    def filler(self) -> int:
        """What fills the last block of a stream that ends: N where there is one, else 0."""
        unknown = NUCLEOTIDES.index("N")
        return unknown if self.alphabet == "nucleotides" and (self.vocabulary or 0) > unknown else 0


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
    seconds; its times are those of the first item of either run. With ``every`` all columns are
    read, one event at a time, and an event is labelled as the output labels its column.
    """

    output: str
    label: str
    column: int = 0
    onset: float = 0.5
    offset: float = 0.35
    min_on: float = 0.05
    min_off: float = 0.3
    every: bool = False


class CertifiedError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An error the exporter measured: largest difference, absolute and relative to
    the largest magnitude of the reference, over ``items`` input items."""

    name: str
    max_abs: float
    max_rel: float
    items: int


#: the name of the error that is no file's: how far torch is from float64 when it computes in float32
ROUNDING = "torch in float32 against float64"


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the matrices of large linear layers are stored; everything else is float32.

    Of int8 and int4 weights ``block_size`` inputs of one output share a scale (fewer in matrices that
    have fewer); ``excluded`` names the linear layers that were left float32 on request.
    """

    dtype: WeightType = "float32"
    block_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    excluded: tuple[str, ...] = ()


class ExternalFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of weights beside the model: its bare name, bytes and sha256."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    size: Count
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a host needs to run the model. ``lookahead`` and ``block`` count input
    items; ``sha256`` covers the whole file with its own 64 digits set to zero.
    ``window_imposed`` is the window to which attention was narrowed when the file was made: up to
    so many items the model is exactly the original."""

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
    window_imposed: Count | None = None
    external: tuple[ExternalFile, ...] = ()
    errors: tuple[CertifiedError, ...] = ()
    provenance: dict[str, Any] = {}

    @property
    def state_bytes(self) -> int:
        """Bytes of state for one stream."""
        return sum(state.nbytes for state in self.states)

    @property
    def rounding(self) -> float:
        """The relative error that the model itself makes in float32, if it is one that matters."""
        return max((error.max_rel for error in self.errors if error.name == ROUNDING), default=0.0)

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
    _validate_tokens(manifest.input)
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
    _validate_external(manifest.external)
    if manifest.events is not None:
        _validate_events(manifest.events, manifest.outputs)


def _validate_tokens(spec: Input) -> None:
    if spec.alphabet and (spec.kind != "tokens" or spec.shape != () or spec.vocabulary is None):
        raise ManifestError(
            f"the alphabet {spec.alphabet!r} is for single tokens of a vocabulary, not for {spec.kind} "
            f"of shape {spec.shape}"
        )
    least = {"bytes": 256, "nucleotides": 4}.get(spec.alphabet, 0)
    if (spec.vocabulary or 0) < least:
        raise ManifestError(
            f"the alphabet {spec.alphabet!r} needs {least} tokens, there are {spec.vocabulary}"
        )
    if spec.end and max(spec.end) >= (spec.vocabulary or 0):
        raise ManifestError(f"the end tokens {spec.end} are not all among the {spec.vocabulary or 0} tokens")


def _validate_external(files: tuple[ExternalFile, ...]) -> None:
    for file in files:
        # what a separator is, and a drive or a stream, is not the same everywhere
        if file.name in (".", "..") or set(file.name) & set('/\\:*?"<>|') or not file.name.isprintable():
            raise ManifestError(
                f"the manifest names the file {file.name!r}; weights lie in a file in the model's own folder"
            )
    if len({file.name for file in files}) < len(files):
        raise ManifestError("the manifest names one file of weights twice")


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
    if rule.every and (rule.column or len(output.labels) != columns):
        raise ManifestError(
            f"the event rule reads every column of {rule.output!r} from column {rule.column} on, with "
            f"{len(output.labels)} labels for {columns} columns; start at 0 and label each"
        )
    if not 0 <= rule.offset <= rule.onset <= 1 or min(rule.min_on, rule.min_off) < 0:
        raise ManifestError(
            f"the event rule has onset {rule.onset}, offset {rule.offset}, min_on {rule.min_on} and "
            f"min_off {rule.min_off}; 0 <= offset <= onset <= 1 and no negative durations must hold"
        )
