"""Small models with random weights as files, one of each kind of layer and all of them together.

python tests/cuda/gpu_files.py FOLDER        exports them, for a machine that cannot
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CONFIGS = {
    "mamba": {"pattern": ["mamba", "mamba"], "d_model": 24, "mamba": {"d_state": 8}},
    "mamba2": {
        "pattern": ["mamba2", "mamba2"],
        "d_model": 24,
        "mamba2": {"headdim": 8, "d_state": 12, "ngroups": 2, "dt_limit": [0.01, 0.5]},
    },
    "hybrid": {
        "pattern": ["mamba", "mamba2", "swa"],
        "d_model": 24,
        "mamba2": {"headdim": 8, "d_state": 12},
        "swa": {"window": 7, "num_heads": 4, "num_kv_heads": 2},
    },
    # nothing but an embedding, blocks and a head: one node of a fused graph
    "words": {
        "pattern": ["mamba"] * 3,
        "d_model": 40,
        "mamba": {"d_state": 7},
        "head": {"tied": True, "bias": False},
    },
    "words2": {
        "pattern": ["mamba2"] * 3,
        "d_model": 40,
        "mamba2": {"headdim": 8, "d_state": 12, "dt_limit": [0.01, 0.5]},
        "head": {"bias": False},
    },
}
SIZE, VOCABULARY = 5, 91


def export_all(folder: Path) -> None:
    """Write every model to the folder."""
    import torch

    from streamssm.export import build, export

    for name, config in CONFIGS.items():
        torch.manual_seed(sum(map(ord, name)))
        if name.startswith("words"):
            head = {"size": VOCABULARY, **config["head"]}
            whole = {**config, "input": {"kind": "tokens", "vocabulary": VOCABULARY}, "head": head}
            path = folder / f"{name}.onnx"
            export(build(whole).eval(), path, kind="tokens", vocabulary=VOCABULARY, block=4)
            continue
        whole = {
            "input": {"kind": "features", "size": SIZE, "rate": 50},
            **config,
            "head": {"size": 3, "activation": "softmax"},
        }
        export(build(whole).eval(), folder / f"{name}.onnx", rate=50.0, block=4)


def model_files(folder: Path) -> dict[str, Path]:
    """The files by name, exported to ``folder`` unless STREAMSSM_CUDA_MODELS names one that has them."""
    given = os.environ.get("STREAMSSM_CUDA_MODELS")
    if given:
        folder = Path(given)
    else:
        export_all(folder)
    return {name: folder / f"{name}.onnx" for name in CONFIGS}


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    export_all(Path(sys.argv[1]))
