"""``quantize``: a float32 model file -> one whose large linear layers hold 8-bit or 4-bit weights.

What becomes of a model: each ``MatMul`` with a constant matrix is a ``com.microsoft::MatMulNBits``,
whose weights share a scale in blocks (:mod:`streamssm.export.quantize_blocks`) and which, at accuracy
level 4, rounds activations to 8 bits in the same blocks and multiplies integers. The front end,
recurrences, convolutions by channel, norms and embedding tables stay float32, and so do matrices too
small to gain.

The golden vectors of the new file are exact products with its rounded weights, computed in float32
with the old graph: rounded activations, which differ between kernels, lie around them, within the
tolerance of the dtype. How far the new file is from the old one is measured, reported, and recorded.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

import streamssm
from streamssm.draw import default_items, draw_input
from streamssm.errors import ExportError, UsageError
from streamssm.export.certify import STORED_HOPS, Golden, Reference, certify
from streamssm.export.quantize_blocks import BITS, BLOCK_SIZES, QuantisedMatrix, fitting_block, quantise
from streamssm.export.quantize_data import Data, Measure, Metric, choose_metric, read_data
from streamssm.export.quantize_graph import (
    DOMAIN,
    OPERATOR,
    LinearLayer,
    linear_layers,
    with_matrices,
    with_quantised,
)
from streamssm.export.quantize_report import Effect, LayerReport, Report, effect, relative_norm
from streamssm.export.writing import require_writable, write_model
from streamssm.manifest import DIGEST_PLACEHOLDER, CertifiedError, Manifest, Weights
from streamssm.onnx_file import read_model_file
from streamssm.outputs import by_name

#: matrices with fewer inputs or outputs stay float32: they are small, and would be mostly padding
LEAST_INPUTS, LEAST_OUTPUTS = 32, 8
BLOCK_SIZE = 128
#: what makes the step size, B and C of a scan: left in float32 if the file is refused with it
SCAN_INPUTS = "x_proj"
#: constants of the front end, by the last part of their names: not weights, and needed to full precision
FRONT_END = ("fourier", "filters")

Progress = Callable[[str, int, int], None]


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    weights: str = "int8",
    *,
    exclude: Sequence[str] = (),
    block_size: int = BLOCK_SIZE,
    data: Any = None,
    metric: str | Measure | None = None,
    per_layer: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Write ``source`` to ``target`` with quantised weights; return what it costs.

    Args:
        source: a float32 model file, or the name of a built-in model.
        target: the file to write; nothing is written if anything is refused.
        weights: ``int8`` or ``int4``.
        exclude: patterns such as ``head.*``; linear layers whose weight's name matches stay float32.
            So do those that make the step size, B and C of a scan (``x_proj``), if the file would be
            refused with them.
        block_size: inputs that share a scale: 16, 32, 64, 128 or 256. Smaller is more exact, larger
            is faster. A matrix of fewer inputs gets the smallest block that holds them.
        data: what to measure output errors on: x [B, T, *item_shape] or [T, ...], a pair (x, labels)
            with labels [B, F], one for each output item, or an .npz file with both. By default the
            golden sample of the file, which is real data if the exporter was given some.
        metric: ``auc``, ``accuracy``, or a callable (what ``Model.scan(x)`` gives, labels) -> float;
            by default what suits the first output.
        per_layer: also quantise each layer by itself and measure its effect.
        progress: called with what is being done, steps done, and steps in all.

    Raises:
        UsageError: an argument is unknown, or a pattern matches nothing.
        ModelFileError: the source is damaged or no model.
        ExportError: the source is quantised already, has nothing to quantise, or its weights are not
            finite; or the rounding of activations does more than the tolerance table allows.
        InputError: the data do not fit the model.
        OutputError: the target cannot be written.
    """
    target = Path(target)
    _check_arguments(weights, block_size)
    require_writable(target)
    model = streamssm.load(source)
    _check_source(model, target)
    proto = onnx.load(model.path)
    layers, kept = _choose(linear_layers(proto), exclude)
    subject = _Subject.of(model, data, metric)

    matrices = _rounded(layers, weights, block_size, progress)
    job = _Job(model, proto, layers, matrices, _manifest(model, weights, block_size, kept))
    job, golden, errors = _certified(job)
    spared = sorted({layer.name for layer in layers} - job.matrices.keys())
    kept |= dict.fromkeys(spared, "read by a scan, which amplifies its rounding")
    total = job.effect(job.matrices, subject)
    single = job.effects(subject, progress) if per_layer else {}
    whole = CertifiedError("against the float32 file", total.max_abs, total.max_rel, subject.items)
    job.write(target, golden, (whole, *errors))
    return _report(job, target, subject, total, single, kept)


def _rounded(
    layers: Sequence[LinearLayer], weights: str, block_size: int, progress: Progress
) -> dict[str, QuantisedMatrix]:
    matrices = {}
    for done, layer in enumerate(layers):
        progress("rounding", done, len(layers))
        block = fitting_block(len(layer.weight), block_size)
        matrices[layer.name] = quantise(layer.weight, BITS[weights], block)
    return matrices


def _report(
    job: _Job,
    target: Path,
    subject: _Subject,
    total: Effect,
    single: Mapping[str, Effect],
    kept: dict[str, str],
) -> Report:
    """What the file that lies at ``target`` by now has cost; ``single`` is the effect of layers alone."""
    written, model = read_model_file(target), job.model
    norms = [job.weight_norms(layer) for layer in job.layers]
    return Report(
        source=str(model.path),
        target=str(target),
        source_sha256=model.sha256,
        sha256=written.manifest.sha256,
        weights=job.manifest.weights.dtype,
        block_size=job.manifest.weights.block_size,
        bytes=(model.file.nbytes, written.nbytes),
        items=subject.items,
        metric=None if subject.metric is None else subject.metric.name,
        baseline=subject.baseline,
        weight_error=relative_norm(*np.transpose(norms)),
        total=total,
        layers=tuple(
            LayerReport(layer.name, *layer.weight.shape, relative_norm(*norm), single.get(layer.name))
            for layer, norm in zip(job.layers, norms, strict=True)
        ),
        kept=kept,
    )


def _certified(job: _Job) -> tuple[_Job, Golden, tuple[CertifiedError, ...]]:
    """The job or, where its file is refused, one with the layers that a scan reads in float32.

    They say what a state takes in and how fast it forgets, so that what rounding does to them is
    multiplied from item to item; and they are few.
    """
    golden = job.golden()
    try:
        return job, golden, _certify(job, golden)
    except ExportError:
        others = [layer for layer in job.layers if SCAN_INPUTS not in layer.name.split(".")]
        if not 0 < len(others) < len(job.layers):
            raise
    # out of the handler: what was refused may be as large as what comes, and is let go
    job = replace(job, layers=others, matrices={layer.name: job.matrices[layer.name] for layer in others})
    golden = job.golden()
    try:
        return job, golden, _certify(job, golden)
    except ExportError as error:
        raise ExportError(f"{error}; tried with {SCAN_INPUTS} rounded, then in float32") from error


def _certify(job: _Job, golden: Golden) -> tuple[CertifiedError, ...]:
    reference = Reference("exact products", "exact products with the same weights", golden.outputs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "draft.onnx"
            job.write(path, golden)
            return certify(path, golden.x, [reference])
    except ExportError as error:
        raise ExportError(
            f"{error}: the model amplifies the rounding of activations; "
            "choose a smaller block, or exclude layers"
        ) from error


def _check_arguments(weights: str, block_size: int) -> None:
    if weights not in BITS:
        raise UsageError(f"weights = {weights!r} is unknown; choose {' or '.join(BITS)}")
    if block_size not in BLOCK_SIZES:
        raise UsageError(f"block_size = {block_size} is not offered; choose one of {BLOCK_SIZES}")


def _check_source(model: streamssm.Model, target: Path) -> None:
    stored = model.manifest.weights.dtype
    if stored != "float32" or (DOMAIN, OPERATOR) in model.file.op_counts:
        raise ExportError(
            f"{model.path} already holds {stored} weights; quantise the float32 file it was made from"
        )
    if target.exists() and os.path.samefile(target, model.path):
        raise UsageError(f"{target} would be written over itself; choose another name for the result")


def _choose(
    layers: Sequence[LinearLayer], exclude: Sequence[str]
) -> tuple[list[LinearLayer], dict[str, str]]:
    """The layers to quantise, and why each of the others is not."""
    for pattern in exclude:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            names = ", ".join(layer.name for layer in layers) or "none"
            raise UsageError(f"exclude pattern {pattern!r} matches no linear layer; there are {names}")
    kept: dict[str, str] = {}
    chosen = []
    for layer in layers:
        K, N = layer.weight.shape
        if layer.name.rpartition(".")[2] in FRONT_END:
            kept[layer.name] = "front end"
        elif "router" in layer.name.split("."):
            kept[layer.name] = "router: a rounded score may choose another expert"
        elif any(fnmatchcase(layer.name, pattern) for pattern in exclude):
            kept[layer.name] = "excluded"
        elif K < LEAST_INPUTS or N < LEAST_OUTPUTS:
            kept[layer.name] = f"{K} x {N}, less than {LEAST_INPUTS} x {LEAST_OUTPUTS}"
        elif not np.isfinite(layer.weight).all():
            raise ExportError(f"weight {layer.name} holds NaN or infinity; the training has diverged")
        else:
            chosen.append(layer)
    if not chosen:
        said = "; ".join(f"{name}: {why}" for name, why in kept.items()) or "there are no linear layers"
        raise ExportError(f"there is nothing to quantise ({said}); use the float32 file")
    return chosen, kept


def _manifest(model: streamssm.Model, weights: Any, block_size: int, kept: Mapping[str, str]) -> Manifest:
    excluded = tuple(name for name, why in kept.items() if why == "excluded")
    return msgspec.structs.replace(
        model.manifest,
        sha256=DIGEST_PLACEHOLDER,
        producer=f"streamssm {streamssm.__version__}",
        weights=Weights(weights, block_size, excluded),
        errors=(),
        provenance={**model.manifest.provenance, "float32 file": model.sha256},
    )


@dataclass(frozen=True)
class _Subject:
    """What errors are measured on, and what the float32 file makes of it."""

    data: Data
    metric: Metric | None
    block: int
    reference: Mapping[str, np.ndarray]
    baseline: float | None

    @classmethod
    def of(cls, model: streamssm.Model, data: Any, metric: str | Measure | None) -> _Subject:
        manifest = model.manifest
        found = read_data(_sample(model) if data is None else data, manifest)
        chosen = choose_metric(metric, found, manifest)
        # long blocks are quick, and what differs between block sizes is no matter here
        block = max(manifest.block, STORED_HOPS * manifest.input.hop)
        result = model.scan(found.x, block=block)
        baseline = None if chosen is None else chosen.measure(result, found.labels)
        return cls(found, chosen, block, by_name(manifest, result), baseline)

    @property
    def items(self) -> int:
        """Input items of all sequences."""
        return self.data.x.shape[0] * self.data.x.shape[1]

    def effect(self, model: streamssm.Model) -> Effect:
        """How far another model is from the float32 file."""
        result = model.scan(self.data.x, block=self.block)
        metric = None if self.metric is None else self.metric.measure(result, self.data.labels)
        return effect(by_name(model.manifest, result), self.reference, metric)


def _sample(model: streamssm.Model) -> np.ndarray:
    """The golden sample, which may be real data, or random items."""
    golden = model.golden()
    if golden is not None:
        return golden[0]
    return draw_input(model.manifest, default_items(model.manifest), np.random.default_rng(0))


@dataclass(frozen=True)
class _Job:
    """The float32 model, its layers in the new form, and the manifest of the new file."""

    model: streamssm.Model
    proto: onnx.ModelProto
    layers: Sequence[LinearLayer]
    matrices: Mapping[str, QuantisedMatrix]
    manifest: Manifest

    def golden(self) -> Golden:
        """What exact products with the rounded weights give, in one call."""
        x = _sample(self.model)
        x = x[: len(x) // self.manifest.input.hop * self.manifest.input.hop]
        restored = {name: matrix.restored() for name, matrix in self.matrices.items()}
        exact = with_matrices(self.proto, self.layers, restored)
        manifest = msgspec.structs.replace(self.manifest, weights=Weights())
        with _opened(exact, manifest) as model:
            lane = model.backend.lane(len(x), 1)
            lane.x[0] = x
            lane.step()
            outputs = zip(manifest.outputs, lane.y, strict=True)
            return Golden(x, {output.name: y[0].copy() for output, y in outputs})

    def write(self, path: Path, golden: Golden, errors: tuple[CertifiedError, ...] = ()) -> Manifest:
        """Write the new file."""
        proto = with_quantised(self.proto, self.layers, self.matrices)
        return write_model(path, proto, msgspec.structs.replace(self.manifest, errors=errors), golden)

    def effect(self, matrices: Mapping[str, QuantisedMatrix], subject: _Subject) -> Effect:
        """That of quantising the layers named in ``matrices``, and no others."""
        proto = with_quantised(self.proto, self.layers, matrices)
        with _opened(proto, self.manifest) as model:
            return subject.effect(model)

    def effects(self, subject: _Subject, progress: Progress) -> dict[str, Effect]:
        """Those of quantising one layer at a time."""
        found = {}
        for done, (name, matrix) in enumerate(self.matrices.items()):
            progress("measuring single layers", done, len(self.matrices))
            found[name] = self.effect({name: matrix}, subject)
        return found

    def weight_norms(self, layer: LinearLayer) -> tuple[float, float]:
        """Norm of what rounding changed, and of the weights."""
        change = self.matrices[layer.name].restored() - layer.weight
        return float(np.linalg.norm(change)), float(np.linalg.norm(layer.weight))


@contextmanager
def _opened(proto: onnx.ModelProto, manifest: Manifest) -> Iterator[streamssm.Model]:
    """A graph as a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draft.onnx"
        write_model(path, proto, manifest, None)
        yield streamssm.load(path)
