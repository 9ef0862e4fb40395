"""Sizes and times of libstreamssm, the C library: what docs/embedding.md says.

    python benchmarks/embed.py

Builds build/embed if need be. Fails if a bar is missed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "embed"
PROGRAMS = BUILD / "kernels" / "embed"
VAD = ROOT / "streamssm" / "models" / "vad.onnx"
RESULT = Path(__file__).parent / "results" / "embed.json"
PUSHES, PROCESSES = 20_000, 9
#: bytes of the stripped library, microseconds of a push beyond the bare run, milliseconds to the first result
BARS = {"stripped": 1 << 20, "overhead_us": 3.0, "process_start_to_first_result_ms": 150.0}


def build() -> None:
    """Configure and build the library and the programs that measure it."""
    options = ["-DSTREAMSSM_EMBED=ON", "-DSTREAMSSM_EMBED_TESTS=ON", "-DSTREAMSSM_CUDA=OFF"]
    for command in (
        ["cmake", "-S", ROOT, "-B", BUILD, *options],
        ["cmake", "--build", BUILD, "-j", str(os.cpu_count())],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)


def sizes() -> dict[str, int]:
    """Bytes of the library as it is, stripped, and as an archive."""
    shared = (PROGRAMS / "libstreamssm.so").resolve()
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / shared.name
        subprocess.run(["strip", "-s", "-o", stripped, shared], check=True)
        return {
            "shared": shared.stat().st_size,
            "stripped": stripped.stat().st_size,
            "static": (PROGRAMS / "libstreamssm.a").stat().st_size,
        }


def times(runtime: Path) -> dict[str, float]:
    """Medians over processes; times of a push are medians within each."""
    runs = []
    for _ in range(PROCESSES):
        command = [PROGRAMS / "embed_measure", VAD, runtime, str(PUSHES)]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def allocations(runtime: Path) -> dict[str, float]:
    """Allocations in a push, by the library that makes them."""
    environment = os.environ | {"LD_PRELOAD": str(PROGRAMS / "libembed_alloc_hook.so")}
    command = [PROGRAMS / "embed_allocations", VAD, runtime]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    counts = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {Path(name).name: int(count) for count, name in counts}


def main() -> None:
    build()
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1*"))
    made: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, **sizes(), **times(runtime)}
    made["allocations in 1000 pushes"] = allocations(runtime)
    RESULT.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))
    missed = [f"{name} is {made[name]}, the bar {bar}" for name, bar in BARS.items() if made[name] > bar]
    if missed:
        print("\n".join(missed), file=sys.stderr)
        raise SystemExit(4)


if __name__ == "__main__":
    main()
