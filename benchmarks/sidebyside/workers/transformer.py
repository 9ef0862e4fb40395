"""A transformer decoder of the size of the tiny models, for latency against the age of a stream.

Llama's block (RMSNorm, rotary attention, gated MLP), tied head, random weights; about as many weights
a layer as the tiny Mamba. Used by ``transformer_llama`` (llama.cpp) and ``transformer_torch``.
"""

from __future__ import annotations

import numpy as np

from sidebyside.shapes import Shape, Weights

HEADS, FEED_FORWARD, THETA = 1, 80, 10_000.0


def draw(shape: Shape) -> Weights:
    """Weights under GGUF's names."""
    rng = np.random.default_rng(2)
    d, F = shape.d_model, FEED_FORWARD

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.uniform(-1, 1, (rows, columns)).astype(np.float32) * columns**-0.5

    weights = {"token_embd.weight": rng.standard_normal((shape.vocabulary, d)).astype(np.float32)}
    for i in range(shape.layers):
        block = f"blk.{i}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights[f"{block}.{name}.weight"] = matrix(d, d)
        weights[f"{block}.ffn_gate.weight"] = matrix(F, d)
        weights[f"{block}.ffn_up.weight"] = matrix(F, d)
        weights[f"{block}.ffn_down.weight"] = matrix(d, F)
        weights[f"{block}.attn_norm.weight"] = np.ones(d, np.float32)
        weights[f"{block}.ffn_norm.weight"] = np.ones(d, np.float32)
    weights["output_norm.weight"] = np.ones(d, np.float32)
    return weights


def cache_bytes(shape: Shape, items: int, width: int) -> int:
    """Bytes of keys and values of so many items, of ``width`` bytes a number."""
    return 2 * shape.layers * shape.d_model * items * width
