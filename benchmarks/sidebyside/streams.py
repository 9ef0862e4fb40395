"""Two smaller sections: a long stream's jitter, and voice activity detection beside Silero."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

import numpy as np

from sidebyside.plan import PEERS, Entry
from sidebyside.rounds import Bench, make_files
from sidebyside.shapes import SHAPES
from sidebyside.worker import Worker, WorkerError

SLICES = 5


def steps(bench: Bench, chosen: set[str]) -> dict[str, Any]:
    """10^5 single steps of the tiny models (a fifth of it when quick), ours and llama.cpp in turn,

    and beside them the same small product again and again, whose jitter is the machine's own.
    """
    total = 20_000 if bench.quick else 100_000
    return {name: _steps(bench, name, total, chosen) for name, shape in SHAPES.items() if shape.tiny}


def _steps(bench: Bench, name: str, total: int, chosen: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for key in ("ours", "llama"):
            if key not in chosen:
                continue
            peer = PEERS[key]
            try:
                arguments = make_files(bench, SHAPES[name], Entry(peer, "fp32"))
                worker = stack.enter_context(bench.worker(peer.module, peer.environment, arguments))
                worker.ask("open")
                workers[key] = worker
            except WorkerError as failure:
                found[key] = {"why": str(failure)}
        machine = bench.worker("machine", None, ("-", "-", str(bench.cache / "models")))
        workers["fixed work"] = stack.enter_context(machine)
        times: dict[str, list[int]] = {key: [] for key in workers}
        shares: dict[str, list[float]] = {key: [] for key in workers}
        for _ in range(SLICES):
            for key, worker in workers.items():
                case = "spin" if key == "fixed work" else "decode"
                answer = worker.ask("time", case=case, count=total // SLICES, warm=500)
                times[key] += answer["ns"]
                shares[key].append(sum(answer["busy"]))
    for key, every in times.items():
        points = {f"p{q:g}_ns": float(np.percentile(every, q)) for q in (99, 99.9)}
        extremes = {"max_ns": max(every), "min_ns": min(every), "steps": len(every)}
        extremes["processor_share"] = min(shares[key])
        found[key] = {"median_ns": statistics.median(every)} | points | extremes
        bench.say(
            f"  {name} {key}: p50 {found[key]['median_ns'] / 1e3:.1f} us, p99 {points['p99_ns'] / 1e3:.1f} us"
        )
    return found


def vad(bench: Bench) -> dict[str, Any]:
    """Microseconds a second of audio: ours a hop at a time, Silero a chunk at a time, in turn."""
    rounds, count = (5, 300) if bench.quick else (15, 1000)
    folder = bench.cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    times: dict[str, list[float]] = {"ours": [], "silero": []}
    with ExitStack() as stack:
        workers = {}
        for key, environment in (("ours", None), ("silero", "silero")):
            try:
                worker = stack.enter_context(bench.worker("vad", environment, ("-", key, str(folder))))
                found[key] = worker.ask("open")
                workers[key] = worker
            except WorkerError as failure:
                found[key] = {"why": str(failure)}
        for _ in range(rounds):
            for key, worker in workers.items():
                step = statistics.median(worker.ask("time", case="hop", count=count, warm=50)["ns"])
                times[key].append(step / found[key]["facts"]["seconds"])
    for key, each in times.items():
        if each:
            found[key]["us_per_second"] = statistics.median(each) / 1e3
            found[key]["us_per_step"] = found[key]["us_per_second"] * found[key]["facts"]["seconds"]
            bench.say(f"  vad {key}: {found[key]['us_per_second']:.0f} us a second of audio")
    pairs = zip(times["silero"], times["ours"], strict=False)
    ratios = [theirs / own for theirs, own in pairs]
    return found | {"ratio": statistics.median(ratios) if ratios else None}
