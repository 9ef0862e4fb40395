"""Engines of TensorRT-RTX for every GPU it compiles for, made on this machine: sizes and build times.

    python benchmarks/engines.py [--only MODEL] [--sm 89 120] [--precision fp16] [--no-write]

``vad``, a hybrid of Mamba, Mamba-2 and attention (examples/hybrid.toml), and Mamba of 130M parameters with
random weights, each for a step and for a push. Written to benchmarks/results/engines.json and engines.md.
Build times are those of a machine that may be busy; nothing is run, for that takes such a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from streamssm.atomic import write_bytes
from streamssm.model import find
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt.builder import Options, build, library
from streamssm.tensorrt.dialect import to_dialect
from streamssm.tensorrt.lowering_check import check_graph
from streamssm.tensorrt.profiles import Calls
from streamssm.tensorrt.targets import RTX_SMS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
#: blocks of a step and of a push, in items
BLOCKS = {"vad": (160, 640), "hybrid": (1, 16), "mamba-130m": (1, 16)}
#: TensorRT-RTX has no float32 products for it
TURING = 75
SHAPE = {"layers": 24, "d_model": 768, "d_state": 16, "vocabulary": 50280}


@dataclass(frozen=True)
class Row:
    """One engine: bytes, kernels of a call, seconds that compiling took, and how far its graph is from the
    model, relative to the largest output."""

    model: str
    sm: int
    block: int
    precision: str
    bytes: int
    kernels: int | None
    seconds: float
    error: float


def model_file(name: str, folder: Path) -> Path:
    """The model as a file."""
    if name == "vad":
        return find("vad")
    from streamssm.export import build as build_model
    from streamssm.export import export, model_options

    torch.manual_seed(0)
    path = folder / f"{name}.onnx"
    if name == "hybrid":
        config = tomllib.loads((ROOT / "examples" / "hybrid.toml").read_text(encoding="utf-8"))
        export(build_model(config).eval(), path, **model_options(config))
    else:
        export(mamba(), path, kind="tokens", vocabulary=SHAPE["vocabulary"], verify=False)
    return path


def mamba():
    """Mamba of 130M parameters, its head tied to its embedding."""
    from streamssm.export.layers import Block, Embedding, Head, Mamba, RMSNorm, Sequential, Stack

    d_model, vocabulary = SHAPE["d_model"], SHAPE["vocabulary"]
    table = Embedding(vocabulary, d_model)
    blocks = [Block(RMSNorm(d_model), Mamba(d_model, SHAPE["d_state"])) for _ in range(SHAPE["layers"])]
    return Sequential(table, Stack(blocks, RMSNorm(d_model)), Head(d_model, vocabulary, tied=table)).eval()


def measure(name: str, path: Path, sms: list[int], precision: str) -> list[Row]:
    """Compile every block of a model for every GPU."""
    file, rtx, rows = read_model_file(path), library("tensorrt_rtx"), []
    for block in BLOCKS[name]:
        data, plain = (
            to_dialect(
                file, rtx.__version__, False, precision=precision, block=block, batch=1, products=products
            )
            for products in (True, False)
        )
        errors = {graph: max(check_graph(file, graph, precision, block).values()) for graph in (data, plain)}
        for sm in sms:
            options = Options(Calls((block,)), precision)
            graph = plain if sm == TURING else data
            built = build(rtx, graph, file.manifest.input.name, (block,), options, sm, lambda *_: None)
            figures = len(built.data), built.kernels, round(built.seconds, 2)
            rows.append(Row(name, sm, block, precision, *figures, errors[graph]))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """A line for each model and block: size and seconds for each GPU."""
    sms = sorted({row.sm for row in rows})
    lines = ["| | " + " | ".join(f"sm_{sm}" for sm in sms) + " |", "| --- |" + " --- |" * len(sms)]
    for model, block in dict.fromkeys((row.model, row.block) for row in rows):
        mine = {row.sm: row for row in rows if (row.model, row.block) == (model, block)}
        cells = [_cell(mine[sm]) if sm in mine else "" for sm in sms]
        lines.append(f"| {model}, block {block} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    return f"{row.bytes / 1e6:.1f} MB, {row.kernels} kernels, {row.seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(BLOCKS), action="append")
    parser.add_argument("--sm", type=int, nargs="*", default=list(RTX_SMS))
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp16")
    parser.add_argument("--no-write", action="store_true")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only or BLOCKS:
            rows += measure(name, model_file(name, Path(folder)), given.sm, given.precision)
    print(table(rows), end="")
    if not given.no_write:
        said = {"tensorrt_rtx": library("tensorrt_rtx").__version__, "engines": [asdict(row) for row in rows]}
        write_bytes(RESULTS / "engines.json", json.dumps(said, indent=1).encode() + b"\n")
        write_bytes(RESULTS / "engines.md", table(rows).encode())


if __name__ == "__main__":
    main()
