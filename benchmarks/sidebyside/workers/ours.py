"""streamssm: the model from a config, exported, quantised, opened by the runtime.

A stream's block is the number of items pushed at a time. ``STREAMSSM_KERNELS`` is left as it is, so
native kernels are taken where they are found.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import numpy as np

import streamssm
from sidebyside.shapes import Shape, Weights, load_weights
from sidebyside.wire import CannotError, TokenPeer, serve


def config(shape: Shape) -> dict[str, object]:
    """What ``streamssm export`` would be given."""
    mixer = {"d_state": shape.d_state, "d_conv": shape.d_conv, "expand": shape.expand}
    if shape.kind == "mamba2":
        mixer |= {"headdim": shape.headdim, "ngroups": shape.groups}
    return {
        "name": shape.name,
        "input": {"kind": "tokens", "vocabulary": shape.vocabulary},
        "pattern": [shape.kind] * shape.layers,
        "d_model": shape.d_model,
        "eps": shape.eps,
        shape.kind: mixer,
        "head": {"size": shape.vocabulary, "tied": True},
    }


def named(weights: Weights) -> Weights:
    """The published names as the config's model calls them."""
    found = {"embedding.weight": weights["backbone.embeddings.weight"]}
    found["head.weight"] = found["embedding.weight"]
    return found | {
        name: value for name, value in weights.items() if name.startswith(("backbone.l", "backbone.n"))
    }


def export(shape: Shape, weights: Weights, path: Path) -> None:
    """Build from the config, load the weights, export."""
    import torch

    from streamssm.export import build, model_options
    from streamssm.export import export as write

    model = build(config(shape))
    tensors = {name: torch.from_numpy(value) for name, value in named(weights).items()}
    model.load_state_dict(tensors)
    write(model.eval(), path, **model_options(config(shape)))


def exporter_version() -> str:
    """A hash of the exporter's source: a file made by another one is not used."""
    package = Path(importlib.import_module("streamssm.export").__file__).parent
    texts = [path.read_bytes() for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


class Ours(TokenPeer):
    """One stream for each number of items a push."""

    versions = ("streamssm", "onnxruntime")

    def path(self, precision: str) -> Path:
        """The file of a precision, by the exporter that wrote it."""
        return self.folder / f"ours-{exporter_version()}-{precision}.onnx"

    def prepare(self) -> None:
        plain, path = self.path("fp32"), self.path(self.precision)
        if not plain.exists():
            for old in self.folder.glob("ours-*.onnx"):
                old.unlink()
            draft = plain.with_suffix(".draft.onnx")
            export(self.shape, load_weights(self.folder), draft)
            draft.replace(plain)
        if path.exists():
            return
        if self.precision not in ("int8", "int4"):
            raise CannotError(f"no {self.precision} form")
        from streamssm.export import quantize

        draft = path.with_suffix(".draft.onnx")
        quantize(plain, draft, weights=self.precision, per_layer=False)
        draft.replace(path)

    def open(self) -> None:
        self.model = streamssm.load(self.path(self.precision))
        self.streams = {}

    def reset(self, size: int) -> None:
        if size not in self.streams:
            self.streams[size] = self.model.stream(block=size, in_place=True)
        self.stream = self.streams[size]
        self.stream.reset()

    def push(self, tokens: np.ndarray, last: bool) -> np.ndarray:
        if last:
            raise CannotError("the exported graph gives the logits of every item")
        return self.stream.push(tokens)

    def facts(self) -> dict[str, object]:
        return {"kernels": str(getattr(self.model.backend, "kernels", "none"))}


if __name__ == "__main__":
    serve(Ours)
