"""Every checkpoint family against transformers: the table of docs/models.md.

    python benchmarks/families.py [--only FAMILY] [--no-write]

For each family the odd small models of tests/export/families.py and one of a common size, random
weights: exported, opened with the runtime, and compared with the whole-sequence form of transformers
in float32. The errors are the largest of all; size, state and speed are those of the common size.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import streamssm
from streamssm.export import export
from streamssm.export.checkpoints import load_checkpoint
from streamssm.export.checkpoints.loading import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "export"))

from families import CASES, ITEMS, Case, random_lengths, reference, relative_error, save  # noqa: E402
from families_b import CASES as MORE  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by benchmarks/families.py -->", "<!-- end -->"
SECONDS = 1.0

NAMES = {
    "mamba": "Mamba",
    "falcon_mamba": "FalconMamba",
    "mamba2": "Mamba2",
    "jamba": "Jamba",
    "recurrent_gemma": "RecurrentGemma",
    "zamba": "Zamba",
    "zamba2": "Zamba2",
    "bamba": "Bamba",
    "falcon_h1": "FalconH1",
    "granite_moe_hybrid": "GraniteMoeHybrid",
    "nemotron_h": "NemotronH",
}
#: a width of 256, about 8 layers, a vocabulary of 1000
WIDE = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 8}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512, "pad_token_id": None}
MAMBA2_HEADS = {"mamba_n_heads": 16, "mamba_n_groups": 1, "mamba_d_state": 64}
HYBRID = ["mamba", "mamba", "mamba", "attention", "mamba", "mamba", "mamba", "attention"]
COMMON: dict[str, dict] = {
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 16, "head_dim": 32, "n_groups": 1, "state_size": 64},
    "jamba": HEADS | {"num_experts": 8},
    "recurrent_gemma": HEADS | {"num_key_value_heads": 1, "attention_window_size": 128},
    "zamba": HEADS | {"num_key_value_heads": 8, "attn_layer_period": 4, "attn_layer_offset": 2},
    "zamba2": HEADS
    | {"num_key_value_heads": 8, "n_mamba_heads": 16, "mamba_d_state": 64}
    | {"layers_block_type": ["mamba", "mamba", "hybrid", "mamba"] * 2},
    "bamba": HEADS | MAMBA2_HEADS | {"attn_layer_indices": [3, 7]},
    "falcon_h1": HEADS | MAMBA2_HEADS | {"mamba_d_ssm": 512},
    "granite_moe_hybrid": HEADS
    | MAMBA2_HEADS
    | {"layer_types": HYBRID, "num_local_experts": 8, "num_experts_per_tok": 2}
    | {"intermediate_size": 128, "shared_intermediate_size": 256},
    "nemotron_h": HEADS
    | {"layers_block_type": ["mamba", "mlp", "mamba", "attention"] * 2, "head_dim": 32}
    | {"mamba_num_heads": 16, "mamba_head_dim": 32, "n_groups": 1, "ssm_state_size": 64},
}
WINDOWS = {"mamba": None, "falcon_mamba": None, "mamba2": None, "recurrent_gemma": None}


def models(family: str) -> list[Case]:
    """The odd models, and last the one of the common size."""
    config = {**WIDE, **COMMON[family]}
    if family == "nemotron_h":  # its list of layers is their number
        del config["num_hidden_layers"]
    common = Case(family, NAMES[family], config, window=WINDOWS.get(family, 128))
    return [*(CASES | MORE)[family], common]


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Errors of the file, its size, state and speed."""
    model = case.model()
    tokens = case.tokens()
    wanted = reference(model, tokens, case.window)[0]
    checkpoint = load_checkpoint(save(model, folder / "checkpoint"), window=case.window)
    del model
    path = folder / "model.onnx"
    export(checkpoint.layer, path, **checkpoint.export_options())
    opened, x = streamssm.load(path), tokens[0].numpy()
    stream = opened.stream(block=7)
    pieces = np.split(x, np.cumsum(random_lengths(ITEMS))[:-1])
    found = {
        "whole": opened.scan(x, block=ITEMS),
        "split": np.concatenate([*(stream.push(piece) for piece in pieces), stream.flush()]),
        "step": opened.scan(x, block=1),
    }
    errors = {name: relative_error(torch.from_numpy(y), wanted) for name, y in found.items()}
    manifest = opened.manifest
    size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    more = {"parameters": manifest.parameters, "bytes": size, "state": manifest.state_bytes}
    return errors | more | {"speed": speed(opened, x)}


def speed(model: streamssm.Model, x: np.ndarray) -> float:
    """Items per second of single pushes, one thread, the median of tenths of a second."""
    stream, rates = model.stream(block=1), []
    end = time.perf_counter() + SECONDS
    i = 0
    while (begin := time.perf_counter()) < end:
        count = 0
        while time.perf_counter() - begin < SECONDS / 10:
            stream.push(x[i % len(x)][None])
            i, count = i + 1, count + 1
        rates.append(count / (time.perf_counter() - begin))
    return float(np.median(rates))


def row(family: str) -> str:
    found = []
    for case in models(family):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(case, Path(folder)))
    worst = " / ".join(f"{max(one[key] for one in found):.1e}" for key in ("whole", "split", "step"))
    common = found[-1]
    return (
        f"| {NAMES[family]} | {worst} | {common['parameters'] / 1e6:.1f} M | {common['bytes'] / 1e6:.1f} MB "
        f"| {common['state']:,} | {common['speed']:,.0f} |"
    )


def table(families: list[str]) -> list[str]:
    head = "| family | error whole / split / step | parameters | file | state bytes | steps per second |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for family in families:
        lines.append(row(family))
        print(lines[-1], flush=True)
    return lines


def write(lines: list[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=FAMILIES, help="one family, and the page stays as it is")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = table([arguments.only] if arguments.only else list(FAMILIES))
    if not (arguments.only or arguments.no_write):
        write(lines)


if __name__ == "__main__":
    main()
