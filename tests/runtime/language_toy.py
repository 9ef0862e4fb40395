"""A small language model in the agreed file form, built by hand: embedding, EMA, head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.parser
from toy_models import EMA, HEADER, ema, manifest, state

from streamssm.manifest import MANIFEST_KEY, TOKENIZER_KEY, Input, Manifest, Output
from streamssm.onnx_file import seal
from streamssm.tokenizer.packed import pack

WIDTH = 3


class LanguageToy:
    """Logits over ``vocabulary`` tokens from an EMA of embeddings."""

    def __init__(self, vocabulary: int, alphabet: str = "", tokenizer: bytes | None = None, **fields: Any):
        rng = np.random.default_rng(vocabulary)
        self.table = rng.integers(-8, 9, (vocabulary, WIDTH)) / 4
        self.head = rng.integers(-8, 9, (WIDTH, vocabulary)) / 2
        self.tokenizer = tokenizer
        end = fields.pop("end", ())
        spec = Input("ids", "tokens", "int64", (), vocabulary=vocabulary, alphabet=alphabet, end=end)
        outputs = [Output("logits", "logits", (vocabulary,))]
        self.manifest: Manifest = manifest("language", spec, outputs, [state("h", WIDTH)], **fields)

    def reference(self, ids: np.ndarray) -> np.ndarray:
        """The logits ``[T, vocabulary]`` in float64."""
        return ema(self.table[ids]) @ self.head

    def log_likelihoods(self, ids: np.ndarray) -> np.ndarray:
        """Of every token but the first."""
        rows = self.reference(ids)[:-1]
        sums = np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1)) + rows.max(-1)
        return rows[np.arange(len(rows)), ids[1:]] - sums

    def write(self, path: Path, **changes: Any) -> Path:
        """Write the file; ``changes`` replace fields of the manifest."""
        size = self.manifest.input.vocabulary
        graph = f"""language (int64[B, T] ids, float[B, {WIDTH}] h) =>
          (float[B, T, {size}] logits, float[B, {WIDTH}] next_h) {{
          table = Constant <value = float[{size}, {WIDTH}] {{{_numbers(self.table)}}}> ()
          head = Constant <value = float[{WIDTH}, {size}] {{{_numbers(self.head)}}}> ()
          rows = Gather (table, ids)
        {EMA.format(x="rows", h="h", y="smooth", d=WIDTH)}
          logits = MatMul (smooth, head)
          next_h = Identity (smooth_last)
        }}"""
        model = onnx.parser.parse_model(HEADER + graph)
        onnx.checker.check_model(model, full_check=True)
        metadata = {MANIFEST_KEY: msgspec.structs.replace(self.manifest, **changes).encode()}
        if self.tokenizer is not None:
            metadata[TOKENIZER_KEY] = pack(self.tokenizer)
        onnx.helper.set_model_props(model, metadata)
        path.write_bytes(seal(model.SerializeToString(deterministic=True)))
        return path


def _numbers(array: np.ndarray) -> str:
    return ", ".join(map(str, array.ravel()))
