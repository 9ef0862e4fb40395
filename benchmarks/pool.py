"""What a pool of thousands of streams costs beside its backend: push, step, and both by rows.

    python benchmarks/pool.py [--streams 4096] [--json FILE]

The backend here computes nothing, so all that is left is ours: checks, copies, who is ready, results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import streamssm
from streamssm.backends import Array, Call
from streamssm.pool import Pool

BLOCK = 160  # 10 ms of the built-in model
BARS = {"step_rows": 1000, "step": 1000}  # microseconds for 4,096 streams


class Nothing:
    """States that no step changes."""

    def __init__(self, block: int, count: int) -> None:
        self._x = np.zeros((count, block), np.float32)
        self._y = np.zeros((count, block // BLOCK, 1), np.float32)

    def read(self, slot: int) -> tuple[Array, ...]:
        """No states."""
        return ()

    def write(self, slot: int, states: Sequence[Array] | None = None) -> None:
        """No states."""

    def calls(self, ready: Array, others: Array) -> Iterator[Call]:
        """One call for all."""
        if len(ready):
            yield Call(ready, ready, self._x, lambda: (self._y,))

    def last_calls(self, ready: Array, items: int) -> Iterator[Call]:
        """The same."""
        return self.calls(ready, ready)


class Idle:
    """The built-in model's backend, but for its slots."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def slots(self, block: int, count: int) -> Nothing:
        """Slots that compute nothing."""
        return Nothing(block, count)


def idle_pool(streams: int) -> Pool:
    """A pool of that many open streams."""
    model = streamssm.load("vad", backend="cpu")
    pool = streamssm.Model(model.file, Idle(model.backend)).pool(streams, BLOCK)
    for key in range(streams):
        pool.open(f"mic-{key}")
    return pool


def microseconds(
    calls: Sequence[tuple[str, Callable[[], object]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of each, called in turns."""
    times: dict[str, list[float]] = {name: [] for name, _ in calls}
    for _ in range(rounds):
        for name, call in calls:
            began = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - began) * 1e6)
    return {
        name: {"p50": statistics.median(found[5:]), "p99": float(np.quantile(found[5:], 0.99))}
        for name, found in times.items()
    }


def measure(streams: int, rounds: int) -> dict[str, dict[str, float]]:
    """Each way to feed the pool, and each way to step it."""
    pool, keys = idle_pool(streams), tuple(f"mic-{key}" for key in range(streams))
    x = 0.1 * np.random.default_rng(0).standard_normal((streams, BLOCK)).astype(np.float32)

    def push_each() -> None:
        for key, chunk in zip(keys, x, strict=True):
            pool.push(key, chunk)

    ways = (
        ("push_rows", lambda: pool.push_rows(keys, x)),
        ("step_rows", pool.step_rows),
        ("push_rows, a new list of keys", lambda: pool.push_rows(list(keys), x)),
        ("step", pool.step),
        ("push, one by one", push_each),
        ("step_rows after that", pool.step_rows),
    )
    return microseconds(ways, rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    found = measure(arguments.streams, arguments.rounds)
    print(f"{arguments.streams} streams, blocks of {BLOCK} samples; microseconds")
    for name, row in found.items():
        bar = f"  (at most {BARS[name]})" if name in BARS and arguments.streams == 4096 else ""
        print(f"{name:32} p50 {row['p50']:8.0f}  p99 {row['p99']:8.0f}{bar}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"streams": arguments.streams, "block": BLOCK, "us": found}, file, indent=1)


if __name__ == "__main__":
    main()
