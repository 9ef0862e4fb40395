"""Golden vectors, and the comparison of an exported file with them. No torch here."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import streamssm
from streamssm import golden, tolerance
from streamssm.errors import ExportError, ManifestError
from streamssm.manifest import CertifiedError, Manifest
from streamssm.outputs import by_name

STORED_HOPS = 100


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


def certify(data: bytes, wanted: Golden, reference: str, origin: str) -> tuple[CertifiedError, ...]:
    """Open a file's bytes with the runtime and compare it with the golden outputs: whole, split,
    hop by hop. ``origin`` says where those come from, ``reference`` in a word for the report.

    Raises:
        ExportError: an output differs by more than the tolerance table allows for the dtype of
            the weights, or the graph is not the one that the manifest describes.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        draft.write_bytes(data)
        try:
            model = streamssm.load(draft)
        except ManifestError as error:
            raise ExportError(f"the traced graph is not what the model says: {error}") from error
        hop, items = model.manifest.input.hop, len(wanted.x)
        blocks = {"whole": items, "blocks of 5 hops": 5 * hop, "single hops": hop}
        return tuple(
            _compare(f"{label} against {reference}", model, wanted, block, origin)
            for label, block in blocks.items()
        )


def _compare(label: str, model: streamssm.Model, wanted: Golden, block: int, origin: str) -> CertifiedError:
    manifest = model.manifest
    found = by_name(manifest, model.scan(wanted.x, block=block))
    worst_abs = worst_rel = 0.0
    for output in manifest.outputs:
        # the runtime drops the warm-up of a look-ahead, and its last items come from the flush
        reference = wanted.outputs[output.name][int(manifest.lookahead * output.per_item) :]
        y = found[output.name][: len(reference)]
        max_abs, max_rel = tolerance.error(y, reference)
        if not tolerance.within(y, reference, manifest.weights.dtype):
            raise ExportError(
                f"output {output.name!r} of the exported file differs from {origin} by {max_abs:.2g} "
                f"({max_rel:.2g} relative), {label}; nothing was written"
            )
        worst_abs, worst_rel = max(worst_abs, max_abs), max(worst_rel, max_rel)
    return CertifiedError(label, worst_abs, worst_rel, len(wanted.x))
