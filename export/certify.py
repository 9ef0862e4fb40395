"""Golden vectors, and the comparison of an exported file with them. No torch here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import streamssm
from streamssm import golden, tolerance
from streamssm.errors import ExportError, ManifestError
from streamssm.manifest import CertifiedError, Manifest
from streamssm.outputs import Outputs, by_name

STORED_HOPS = 100
#: a model is run over fewer items, the more parameters it has: this many times both
WORK = 8_000_000_000
_FEWEST_HOPS = 64
_LONGEST_PIECE = 32


@dataclass(frozen=True)
class Golden:
    """Input items [T, *item_shape] and what the graph should make of them in one call."""

    x: np.ndarray
    outputs: dict[str, np.ndarray]

    def encode(self, manifest: Manifest) -> str:
        """The first hundred hops as base64, for the file's metadata."""
        kept = self.x[: STORED_HOPS * manifest.input.hop]
        frames = {output.name: int(len(kept) * output.per_item) for output in manifest.outputs}
        outputs = {name: y[: frames[name]] for name, y in self.outputs.items()}
        return base64.b64encode(golden.encode(kept, outputs)).decode()


@dataclass(frozen=True)
class Reference:
    """What a file is compared with: a word for the report, where it comes from for an error, and
    the outputs for the items of the golden vectors. ``rounding`` finds the relative error that the
    model itself makes in float32; it is asked where the tolerance table is not enough."""

    name: str
    origin: str
    outputs: dict[str, np.ndarray]
    rounding: Callable[[], float] = lambda: 0.0


def certify(path: Path, x: np.ndarray, references: Sequence[Reference]) -> tuple[CertifiedError, ...]:
    """Open a file with the runtime and compare it with every reference: the whole of ``x``
    [T, *item_shape] in one call, in random pieces with the state carried on, and hop by hop.

    Raises:
        ExportError: an output differs by more than the tolerance table allows for the dtype of
            the weights, or the graph is not the one that the manifest describes.
    """
    seen = _measured(path, x, references)
    # by now the model is closed: what a reference needs to find its rounding fits in its place
    for one in seen:
        one.judge()
    return tuple(one.error for one in seen)


def _measured(path: Path, x: np.ndarray, references: Sequence[Reference]) -> list[_Seen]:
    try:
        model = streamssm.load(path)
    except ManifestError as error:
        raise ExportError(f"the traced graph is not what the model says: {error}") from error
    seen = []
    for label, items, run in _runs(model, len(x)):
        found = run(model, x[:items])
        for reference in references:
            name = f"{label} against {reference.name}"
            seen.append(_compare(name, model.manifest, found, reference, items))
        del found  # before the next, which may be as large
    return seen


def affordable(items: int, hop: int, parameters: int) -> int:
    """At most so many items as a model of this size is run over in a minute or so."""
    return min(items, max(_FEWEST_HOPS * hop, WORK // max(1, parameters)) // hop * hop)


_Run = Callable[[streamssm.Model, np.ndarray], Outputs]


def _runs(model: streamssm.Model, items: int) -> Iterator[tuple[str, int, _Run]]:
    hop = model.manifest.input.hop
    # one item at a time reads every weight for each
    single = affordable(items, hop, 2 * model.manifest.parameters)
    yield "whole", items, _whole
    yield "random splits", items, _in_pieces
    yield "single steps", single, lambda model, x: by_name(model.manifest, model.scan(x, block=hop))


def _whole(model: streamssm.Model, x: np.ndarray) -> Outputs:
    """The graph called once."""
    lane = model.backend.lane(len(x), 1)
    lane.x[0] = x
    lane.step()
    outputs = enumerate(zip(model.manifest.outputs, lane.y, strict=True))
    return {output.name: y[0, _warm_up(model.manifest, at) :] for at, (output, y) in outputs}


def _in_pieces(model: streamssm.Model, x: np.ndarray) -> Outputs:
    """The graph called with a random number of hops each time, from one to many."""
    manifest, rng = model.manifest, np.random.default_rng(0)
    hop = manifest.input.hop
    longest = min(_LONGEST_PIECE, len(x) // hop)
    lane = model.backend.lane(longest * hop, 1)
    found = {
        output.name: np.empty((int(len(x) * output.per_item), *output.shape), np.float32)
        for output in manifest.outputs
    }
    start = 0
    while start < len(x):
        length = hop * int(np.exp(rng.uniform(0, np.log(longest + 1))))
        piece = x[start : start + length]
        lane.x[0, : len(piece)] = piece
        for output, y in zip(manifest.outputs, lane.step_short(len(piece)), strict=True):
            first = int(start * output.per_item)
            found[output.name][first : first + y.shape[1]] = y[0]
        start += len(piece)
    return {
        output.name: found[output.name][_warm_up(manifest, at) :]
        for at, output in enumerate(manifest.outputs)
    }


def _warm_up(manifest: Manifest, index: int) -> int:
    """The output items of a look-ahead, which the runtime drops."""
    return int(manifest.lookahead * manifest.outputs[index].per_item)


@dataclass(frozen=True)
class _Seen:
    """How far a file was from a reference in one way of running it."""

    error: CertifiedError
    reference: Reference
    beyond: str  # the output that is beyond the table, if one is

    def judge(self) -> None:
        """Refuse what is beyond the table, and beyond the model's own rounding."""
        error, reference = self.error, self.reference
        if not self.beyond or tolerance.excused(error.max_rel, reference.rounding()):
            return
        raise ExportError(
            f"output {self.beyond!r} of the exported file differs from {reference.origin} by "
            f"{error.max_abs:.2g} ({error.max_rel:.2g} relative), {error.name}; nothing was written"
        )


def _compare(label: str, manifest: Manifest, found: Outputs, reference: Reference, items: int) -> _Seen:
    beyond, worst_abs, worst_rel = "", 0.0, 0.0
    for at, output in enumerate(manifest.outputs):
        # of the runtime the last items come from the flush
        wanted = reference.outputs[output.name][: int(items * output.per_item)][_warm_up(manifest, at) :]
        y = found[output.name][: len(wanted)]
        max_abs, max_rel = tolerance.error(y, wanted)
        if not tolerance.within(y, wanted, manifest.weights.dtype):
            beyond = output.name
        worst_abs, worst_rel = max(worst_abs, max_abs), max(worst_rel, max_rel)
    return _Seen(CertifiedError(label, worst_abs, worst_rel, items), reference, beyond)
