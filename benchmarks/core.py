"""The core's promises as figures: push overhead, import time, a stream of a million steps.

    python benchmarks/core.py [--model vad] [--steps 1000000] [--json FILE]

Times on a shared machine drift, so what is compared is interleaved in one process, and the
figures are medians and ratios. Exits 4 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from rich.progress import track
from rich.table import Table

import streamssm
from streamssm import tolerance
from streamssm.bench import measure
from streamssm.draw import draw_input

OVERHEAD_US, IMPORT_MS, DRIFT, GROWTH_KB = 10.0, 60.0, 0.05, 2048


def bare_runner(path: Path, block: int, x: np.ndarray) -> tuple[Callable[[], None], dict[str, np.ndarray]]:
    """A step of plain ONNX Runtime on bindings made once, state to and fro; and its outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    manifest = streamssm.load(path).manifest
    wrap = onnxruntime.OrtValue.ortvalue_from_numpy
    outputs = {o.name: np.zeros((1, int(block * o.per_item), *o.shape), np.float32) for o in manifest.outputs}
    sides = [{s.name: np.zeros((1, *s.shape), s.dtype) for s in manifest.states} for _ in range(2)]
    bindings = []
    for read, write in (sides, sides[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input(manifest.input.name, wrap(x))
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, wrap(value))
        for state in manifest.states:
            binding.bind_ortvalue_input(state.name, wrap(read[state.name]))
            binding.bind_ortvalue_output(state.next, wrap(write[state.name]))
        bindings.append(binding)
    turn = 0

    def step() -> None:
        nonlocal turn
        session.run_with_iobinding(bindings[turn])
        turn = 1 - turn

    return step, outputs


def push_overhead(model: streamssm.Model, steps: int = 20_000) -> dict[str, float]:
    """Median microseconds of a push, of a stock ONNX Runtime that runs the file on the same chunk, and of
    a push beyond the run of the same backend, each pair interleaved."""
    block = model.manifest.block
    chunk = draw_input(model.manifest, block, np.random.default_rng(0))
    step, outputs = bare_runner(model.path, block, chunk[None].copy())
    stream, clock = model.stream(), time.perf_counter_ns
    bare, push = np.zeros(steps), np.zeros(steps)
    for i in range(steps):
        start = clock()
        step()
        middle = clock()
        y = stream.push(chunk)
        push[i], bare[i] = clock() - middle, middle - start
    for name, value in (y if isinstance(y, dict) else {next(iter(outputs)): y}).items():
        if not tolerance.within(value, outputs[name][0], "float32"):
            raise SystemExit(f"the two runs disagree on {name}: {tolerance.error(value, outputs[name][0])}")
    bare_us, push_us = np.median(bare) / 1e3, np.median(push) / 1e3
    overhead = measure(model, steps * block)["overhead_us"]
    return {"bare_us": bare_us, "push_us": push_us, "overhead_us": overhead}


def import_time(repeats: int = 15) -> dict[str, float]:
    """Median milliseconds that ``import streamssm`` and its public names add to ``import numpy``,
    in fresh processes, which must not have imported torch or onnxruntime."""
    code = (
        "import time, numpy; t = time.perf_counter(); import streamssm; streamssm.load, streamssm.Stream; "
        "print((time.perf_counter() - t) * 1e3); import sys; "
        "assert not {'torch', 'onnxruntime'} & set(sys.modules)"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(repeats)
    ]
    return {"import_ms": statistics.median(runs)}


def long_stream(model: streamssm.Model, steps: int) -> dict[str, float]:
    """A stream of ``steps`` blocks: median step by tenths of its life, and growth of memory."""
    stream, chunk, clock = (
        model.stream(),
        draw_input(model.manifest, model.manifest.block, np.random.default_rng(0)),
        time.perf_counter_ns,
    )
    times = np.full(steps, -1, np.int64)  # written now, so that its pages do not count as growth
    memory = []
    for decile in track(range(10), "a long stream", console=Console(stderr=True)):
        memory.append(resident_kb())
        for i in range(decile * steps // 10, (decile + 1) * steps // 10):
            start = clock()
            stream.push(chunk)
            times[i] = clock() - start
    medians = [float(np.median(part)) / 1e3 for part in np.array_split(times, 10)]
    return {
        "steps": steps,
        "first_decile_us": medians[0],
        "last_decile_us": medians[-1],
        "drift": medians[-1] / medians[0] - 1,
        "worst_decile_drift": max(medians) / medians[0] - 1,
        "growth_kb": resident_kb() - memory[1],
    }


def resident_kb() -> int:
    """Resident memory of this process; the peak where the system does not tell the present."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vad")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = streamssm.load(arguments.model)
    found = import_time() | push_overhead(model) | long_stream(model, arguments.steps)
    rows = [
        ("import streamssm beyond numpy", f"{found['import_ms']:.1f} ms", found["import_ms"] <= IMPORT_MS),
        ("one push / a stock ONNX Runtime", f"{found['push_us']:.1f} / {found['bare_us']:.1f} us", True),
        ("a push beyond its own run", f"{found['overhead_us']:.1f} us", found["overhead_us"] <= OVERHEAD_US),
        (
            f"p50 of the last tenth of {found['steps']:,} steps",
            f"{found['drift']:+.1%}",
            found["drift"] <= DRIFT,
        ),
        ("memory gained after the first tenth", f"{found['growth_kb']} KB", found["growth_kb"] <= GROWTH_KB),
    ]
    table = Table("figure", "seen", "", title=f"{arguments.model}, block of {model.manifest.block} items")
    for label, seen, good in rows:
        table.add_row(label, seen, "ok" if good else "MISSED")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(good for *_, good in rows) else 4


if __name__ == "__main__":
    sys.exit(main())
