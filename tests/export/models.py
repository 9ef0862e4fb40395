"""Three whole models, one of each kind of input: small, random weights, every layer kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from streamssm.export import build, export, model_options
from streamssm.export.layers import StreamingLayer

CONFIGS: dict[str, dict[str, Any]] = {
    "audio": {
        "input": {
            "kind": "samples",
            "rate": 8000,
            "front_end": {"type": "log_mel", "window": 200, "hop": 80, "n_fft": 256, "n_mels": 12},
            "normalise": {"time_constant": 50},
        },
        "pattern": ["mamba", "gru"],
        "d_model": 16,
        "head": {"size": 1, "activation": "sigmoid", "labels": ["voice"]},
        "events": {"output": "head", "label": "voice"},
        "block": 160,
    },
    "sensor": {
        "input": {"kind": "features", "size": 5, "rate": 50},
        "pattern": ["mamba", "mamba2", "swa"],
        "d_model": 24,
        "mamba2": {"headdim": 8, "d_state": 12, "ngroups": 2, "dt_limit": [0.01, 0.5]},
        "swa": {"window": 7, "num_heads": 4, "num_kv_heads": 2},
        "head": {"size": 3, "activation": "softmax", "labels": ["walk", "run", "rest"]},
        "block": 4,
    },
    "tokens": {
        "input": {"kind": "tokens", "vocabulary": 40},
        "pattern": ["mamba2", "lstm", "swa"],
        "d_model": 16,
        "mamba2": {"headdim": 4, "d_state": 8},
        "swa": {"window": 5, "num_heads": 2},
        "mlp": {"hidden": 20},
        "head": {"size": 40},
    },
}


def build_model(name: str) -> StreamingLayer:
    torch.manual_seed(sum(map(ord, name)))
    return build(CONFIGS[name]).eval()


def export_model(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    export(build_model(name), path, **model_options(CONFIGS[name]))
    return path
