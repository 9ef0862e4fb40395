"""Measures what a push costs beside the bare run of the backend that it wraps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from streamssm.draw import draw_input
from streamssm.errors import UsageError
from streamssm.report import QUANTILES, algorithmic_latency

if TYPE_CHECKING:
    from streamssm.model import Model

BLOCKS = 2000
_WARM_UP = 20
_DIFFERENT = 64  # distinct blocks of input, used in turn


def measure(
    model: Model, items: int | None = None, block: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Push one block at a time; beside each push run the backend alone on the same block.

    Push and run take turns, and turns at going first, so that both meet the same machine and the
    same caches. ``overhead_us`` is the median of the differences, pair by pair.

    Raises:
        UsageError: ``items`` are fewer than one block.
    """
    stream = model.stream(block=block, in_place=True)  # as run does
    size, manifest = stream.block, model.manifest
    rounds = BLOCKS if items is None else items // size
    if not rounds:
        raise UsageError(f"{items} items are less than one block of {size}; give more, or a smaller --block")
    rng = np.random.default_rng(seed)
    chunks = [draw_input(manifest, size, rng) for _ in range(min(_DIFFERENT, rounds))]
    lane = model.backend.lane(size, 1, in_place=True)
    pushes, runs = [], []
    for turn in range(-_WARM_UP, rounds):
        chunk = chunks[turn % len(chunks)]
        lane.x[0] = chunk
        if turn % 2:
            ran, pushed = _time(lane.step), _time(stream.push, chunk)
        else:
            pushed, ran = _time(stream.push, chunk), _time(lane.step)
        if turn >= 0:
            pushes.append(pushed)
            runs.append(ran)
    push, rate = statistics.median(pushes), manifest.input.rate
    overhead = statistics.median(p - r for p, r in zip(pushes, runs, strict=True))
    return {
        "model": manifest.name,
        "backend": model.backend.name,
        "items": rounds * size,
        "block": size,
        "algorithmic_latency": algorithmic_latency(manifest, size),
        "push_us": _microseconds(pushes),
        "run_us": _microseconds(runs),
        "overhead_us": round(overhead * 1e6, 3),
        "items_per_second": round(size / push, 1),
        "real_time_factor": None if rate is None else push * rate / size,
        "state_bytes": manifest.state_bytes,
    }


def _time(call: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def _microseconds(times: list[float]) -> dict[str, float]:
    values = {name: float(np.quantile(times, fraction)) for name, fraction in QUANTILES.items()}
    return {name: round(value * 1e6, 3) for name, value in (values | {"max": max(times)}).items()}


def resident_bytes() -> int | None:
    """Memory that this process occupies, where the system tells."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None
