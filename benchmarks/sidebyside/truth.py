"""Float64 logits of the models, from the readable definitions in ``streamssm.kernels.reference``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sidebyside.shapes import Shape, Weights, draw_tokens, load_weights
from streamssm.kernels import reference

#: how many items are compared, and how long the prefill is
ITEMS, PREFILL = 64, 512


def logits(shape: Shape, weights: Weights, tokens: np.ndarray, keep: slice) -> np.ndarray:
    """Logits [kept, vocabulary] after tokens [T], as one whole sequence."""
    mixer = reference.mamba2_mixer if shape.kind == "mamba2" else reference.mamba_mixer
    embedding = weights["backbone.embeddings.weight"].astype(np.float64)
    x = embedding[tokens][None]
    for index in range(shape.layers):
        block = f"backbone.layers.{index}."
        own = {
            name.removeprefix(f"{block}mixer."): value
            for name, value in weights.items()
            if name.startswith(f"{block}mixer.")
        }
        normed = reference.rms_norm(x, weights[f"{block}norm.weight"], shape.eps)
        x = x + mixer(normed, own)[0]
    x = reference.rms_norm(x[0, keep], weights["backbone.norm_f.weight"], shape.eps)
    return x @ embedding.T


def truth(shape: Shape, folder: Path) -> np.ndarray:
    """Float64 logits of the first ITEMS tokens and of the last ITEMS of PREFILL, [2 * ITEMS, vocabulary].

    Computed once, kept beside the weights.
    """
    path = folder / "truth.npy"
    if not path.exists():
        tokens, weights = draw_tokens(shape, PREFILL), load_weights(folder)
        keep = np.r_[0:ITEMS, PREFILL - ITEMS : PREFILL]
        draft = folder / "truth.draft.npy"
        np.save(draft, logits(shape, weights, tokens, keep))
        draft.replace(path)
    return np.load(path, mmap_mode="r")


def error(seen: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest magnitude expected."""
    return float(np.abs(seen - expected).max() / np.abs(expected).max())
