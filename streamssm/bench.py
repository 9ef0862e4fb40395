"""Measures what a push costs beside the bare run of the backend, and many streams beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm.draw import draw_input
from streamssm.errors import UsageError
from streamssm.report import QUANTILES, algorithmic_latency

if TYPE_CHECKING:
    from streamssm.model import Model

BLOCKS = 2000
_WARM_UP = 20
_DIFFERENT = 64  # distinct blocks of input, used in turn
_TURN, _SECONDS = 6, 1.0  # of many streams: rounds of one way before the next, all of them

Array = npt.NDArray[Any]


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


def measure_streams(
    model: Model, streams: int, items: int | None = None, block: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """``streams`` streams that are given the model's block of items in turn: each a :class:`Stream`
    that runs it at once, and together in a :class:`Pool` whose block is ``block`` items, by default four
    times as many. ``items`` are for each stream; by default, what takes about a second.

    The ways take turns. ``us`` is CPU time for a stream and a hop, the model's block; ``ratio`` is one
    by one to pool; ``rows`` is the pool fed by :meth:`Pool.push_rows`. ``streams_per_core`` is how many
    streams the pool would keep up with in real time; ``p99_ms`` is from a block's last items to its
    results, for all streams; ``missed`` is the part of blocks that took longer than they last.

    Raises:
        UsageError: ``items`` are fewer than one block, or ``block`` is no multiple of the model's.
    """
    hop, rate = model.manifest.block, model.manifest.input.rate
    size = 4 * hop if block is None else block
    if size % hop:
        raise UsageError(f"a block of {size} items cannot be fed by hops of {hop}; give a multiple")
    rounds = None if items is None else items // size
    if rounds == 0:
        raise UsageError(f"{items} items are less than one block of {size}; give more, or a smaller --block")
    rng = np.random.default_rng(seed)
    chunks = np.stack([draw_input(model.manifest, size, rng) for _ in range(streams)])
    hops = [chunks[:, at : at + hop].copy() for at in range(0, size, hop)]
    ways = {"one_by_one": _one_by_one(model, hops), "pool": _pooled(model, hops), "rows": _rows(model, hops)}
    spent, late = _take_turns(ways, rounds)
    us = {name: statistics.median(times) / (streams * len(hops)) * 1e6 for name, times in spent.items()}
    lasts = None if rate is None else size / rate
    return {
        "streams": streams,
        "hop": hop,
        "block": size,
        "us": {name: round(value, 3) for name, value in us.items()},
        "ratio": round(us["one_by_one"] / us["pool"], 2),
        "ratio_rows": round(us["one_by_one"] / us["rows"], 2),
        "streams_per_core": None if rate is None else int(hop / rate / us["pool"] * 1e6),
        "p99_ms": round(float(np.quantile([end for end, _ in late], 0.99)) * 1e3, 3),
        "missed": None if lasts is None else sum(whole > lasts for _, whole in late) / len(late),
    }


#: feeds all streams a block, hop by hop; returns the seconds since it was given the last hop
Way = Callable[[], float]


def _one_by_one(model: Model, hops: list[Array]) -> Way:
    opened = [model.stream() for _ in hops[0]]

    def feed() -> float:
        for hop in hops:
            began = time.perf_counter()
            for stream, chunk in zip(opened, hop, strict=True):
                stream.push(chunk)
        return time.perf_counter() - began

    return feed


def _pooled(model: Model, hops: list[Array], together: bool = False) -> Way:
    pool = model.pool(len(hops[0]), hops[0].shape[1] * len(hops))
    keys = range(len(hops[0]))
    for key in keys:
        pool.open(key)

    def feed() -> float:
        for hop in hops:
            began = time.perf_counter()
            if together:
                pool.push_rows(keys, hop)
            else:
                for key, chunk in zip(keys, hop, strict=True):
                    pool.push(key, chunk)
        pool.step()
        return time.perf_counter() - began

    return feed


def _rows(model: Model, hops: list[Array]) -> Way:
    return _pooled(model, hops, together=True)


def _take_turns(
    ways: dict[str, Way], rounds: int | None
) -> tuple[dict[str, list[float]], list[tuple[float, float]]]:
    """CPU seconds of each way's rounds; of the pool's, wall clock since the last hop and of all.

    Turns last a few rounds, after one that brings a way's own data into the caches.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    late = []
    began = time.perf_counter()
    while len(spent["pool"]) < (rounds or _TURN) or (
        rounds is None and time.perf_counter() - began < _SECONDS
    ):
        for name, feed in ways.items():
            feed()
            for _ in range(_TURN if rounds is None else min(_TURN, rounds - len(spent[name]))):
                wall, cpu = time.perf_counter(), time.thread_time()
                end = feed()
                spent[name].append(time.thread_time() - cpu)
                late += [(end, time.perf_counter() - wall)] if name == "pool" else []
    return spent, late


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
