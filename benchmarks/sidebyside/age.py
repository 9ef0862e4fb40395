"""Latency against the age of a stream: ours, and a transformer's growing cache beside it."""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

import numpy as np

from sidebyside.rounds import Bench
from sidebyside.shapes import SHAPES, model_folder, save_weights
from sidebyside.truth import error
from sidebyside.worker import WorkerError
from sidebyside.workers.transformer import cache_bytes

MARKS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
#: steps timed at each age, less at the first: of ours, and of a transformer, whose steps grow long
WINDOWS = (2000, 50)

#: (key, title, module, environment, model, bytes of a cached number)
LINES = (
    ("ours-mamba", "streamssm, Mamba", "ours", None, "tiny-mamba", None),
    ("ours-mamba2", "streamssm, Mamba-2", "ours", None, "tiny-mamba2", None),
    ("llama", "transformer, llama.cpp", "transformer_llama", "llama", "tiny-mamba", 2),
    ("torch", "transformer, PyTorch", "transformer_torch", "torch", "tiny-mamba", 4),
)


def run(bench: Bench) -> dict[str, Any]:
    """Every line as far as it gets in its time; nothing is extrapolated."""
    marks = [mark for mark in MARKS if mark <= (30_000 if bench.quick else MARKS[-1])]
    seconds = 12.0 if bench.quick else 90.0
    found = {line[0]: _line(bench, line, marks, seconds) for line in LINES}
    return {"lines": found, "marks": marks, "transformers_agree": _agree(bench)}


def _line(bench: Bench, line: tuple[Any, ...], marks: list[int], seconds: float) -> dict[str, Any]:
    key, title, module, environment, model, width = line
    shape = SHAPES[model]
    folder = model_folder(bench.cache, shape)
    save_weights(folder, shape)
    arguments = (model, "fp32", str(folder))
    result: dict[str, Any] = {"title": title, "points": []}
    # ours is a live stream through every item; its time is not limited
    limit = 3600.0 if width is None else seconds
    try:
        with bench.worker(module, environment, arguments, pinned=False) as maker:
            maker.ask("prepare")
        with bench.worker(module, environment, arguments) as worker:
            worker.ask("open")
            answer = worker.ask(
                "age", limit=limit + 600, marks=marks, window=WINDOWS[width is not None], seconds=limit
            )
    except WorkerError as failure:
        return result | {"why": str(failure)}
    for point in answer["ages"]:
        times = point["ns"]
        size = shape.state_bytes if width is None else cache_bytes(shape, point["age"], width)
        result["points"].append(
            {"age": point["age"], "median_ns": statistics.median(times), "max_ns": max(times), "bytes": size}
        )
    last = answer["ages"][-1]["age"] if answer["ages"] else 0
    if last < marks[-1]:
        result["stopped"] = f"{answer['reached']:,} items in {seconds:.0f} s; not extrapolated"
    bench.say(f"  {key}: to {last:,} items; " + result.get("stopped", "all measured"))
    return result


def _agree(bench: Bench) -> float | None:
    """The relative difference of the two transformers' logits: that they are one model."""
    logits = []
    for key, _, module, environment, model, _ in LINES:
        if not module.startswith("transformer"):
            continue
        shape = SHAPES[model]
        arguments = (model, "fp32", str(model_folder(bench.cache, shape)))
        try:
            with bench.worker(module, environment, arguments) as worker:
                worker.ask("open")
                with tempfile.NamedTemporaryFile(suffix=".npy") as file:
                    worker.ask("logits", size=1, count=64, keep=64, out=file.name)
                    logits.append(np.load(file.name))
        except WorkerError as failure:
            bench.say(f"  {key}: {failure}")
            return None
    return error(logits[0], logits[1])
