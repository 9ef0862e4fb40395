"""Many live streams: what a pool saves, how many a core carries in real time, and a server under load.

    python benchmarks/streams.py                 everything, about 6 minutes; wants a quiet machine
    python benchmarks/streams.py --quick         the same, short
    python benchmarks/streams.py --only ratio --only capacity

Sections: ratio, capacity, serve, idle, slowloris, overload. Tables go to results/streams.md and figures to
results/streams.json, unless --no-save. Exits 4 on a missed bar with --strict.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from crowd.server import served  # noqa: E402  found beside this file

Figures = dict[str, Any]

STREAMS, MISSES, RATIO = 400, 0.001, 4.0
GATHER = 0.010  # seconds from step to step of the paced pool
CLIENTS, IDLE, SLOW = 50, 1000, 200
SERVE_P99_MS, WORSE, OVERLOAD_MISSES = 10 + 10.0, 1.10, 0.01


@dataclass(frozen=True)
class Bar:
    """A figure and what it must be."""

    what: str
    seen: str
    wanted: str
    good: bool


# Pools.


def ratio(quick: bool) -> Figures:
    """A pool of 64 beside 64 streams one by one, a push a hop; the median of several runs."""
    import streamssm
    from streamssm.bench import measure_streams

    model = streamssm.load("vad")
    runs = [measure_streams(model, 64, 640 * (8 if quick else 50), seed=seed) for seed in range(5)]
    return sorted(runs, key=lambda run: run["ratio"])[2] | {"ratios": [run["ratio"] for run in runs]}


def ratio_bars(found: Figures) -> list[Bar]:
    """What is asked of :func:`ratio`."""
    us = found["us"]
    cost = f"{us['one_by_one']:.1f} / {us['pool']:.1f} us a hop"
    return [
        Bar(
            "64 streams, one by one / pool",
            f"{found['ratio']:.2f} ({cost})",
            f"{RATIO}",
            found["ratio"] >= RATIO,
        ),
        Bar("the same, hops of all streams together", f"{found['ratio_rows']:.2f}", "", True),
    ]


def capacity(quick: bool) -> Figures:
    """Streams that one core carries in real time, and a longer run at the number that is asked for."""
    seconds = 2 if quick else 8
    runs = [json.loads(line) for line in child("paced", "vad", seconds, GATHER).splitlines()]
    held = json.loads(child("paced", "vad", seconds if quick else 30, GATHER, STREAMS))
    best = max((run for run in runs if run["missed"] < MISSES), key=lambda run: run["streams"], default=None)
    return {"runs": runs, "best": best, "held": held}


def capacity_bars(found: Figures) -> list[Bar]:
    """What is asked of :func:`capacity`."""
    held, best = found["held"], found["best"]
    seen = f"{held['missed']:.3%} missed, p99 {held['p99_ms']:.0f} ms, {held['busy']:.0%} of the core"
    by_time = f"{held['streams_per_cpu']:.0f} by processor time"
    return [
        Bar(f"{STREAMS} streams on a core, blocks of 40 ms", seen, f"{MISSES:.1%}", held["missed"] < MISSES),
        Bar("most streams on a core", f"{best['streams'] if best else 0}, {by_time}", "", True),
    ]


# A server.


def serve(quick: bool) -> Figures:
    """Clients that speak at 10 ms hops, each answered hop by hop."""
    with served("vad", CLIENTS) as address:
        return speak(address, CLIENTS, quick)


def serve_bars(found: Figures) -> list[Bar]:
    """What is asked of :func:`serve`."""
    p99 = found["p99_ms"]
    seen = f"p50 {found['p50_ms']:.1f}, p99 {p99:.1f}, max {found['max_ms']:.0f} ms"
    whole = found["admitted"] == CLIENTS and not found["incomplete"]
    return [
        Bar(
            f"serve, {CLIENTS} clients, end to end",
            seen,
            f"{SERVE_P99_MS:.0f} ms",
            whole and p99 < SERVE_P99_MS,
        )
    ]


def idle(quick: bool) -> Figures:
    """The same beside connected clients that say nothing."""
    return beside("idle", IDLE, quick)


def slowloris(quick: bool) -> Figures:
    """The same beside connections that never finish their request."""
    return beside("slowloris", SLOW, quick)


def beside(kind: str, count: int, quick: bool) -> Figures:
    """Speakers with and without others, in turns on one server; medians."""
    alone, crowded = [], []
    with served("vad", CLIENTS + IDLE) as address:
        for _ in range(1 if quick else 3):
            alone.append(speak(address, CLIENTS, quick))
            with others(kind, address, count):
                crowded.append(speak(address, CLIENTS, quick))
    p99 = {
        name: statistics.median(run["p99_ms"] for run in runs)
        for name, runs in (("alone", alone), ("crowded", crowded))
    }
    return {"others": count, "p99_ms": p99, "alone": alone, "crowded": crowded}


def beside_bars(found: Figures, what: str) -> list[Bar]:
    """What is asked of :func:`idle` and :func:`slowloris`."""
    alone, crowded = found["p99_ms"]["alone"], found["p99_ms"]["crowded"]
    seen = f"p99 {alone:.1f} -> {crowded:.1f} ms"
    return [
        Bar(
            f"{found['others']} {what} beside {CLIENTS}",
            seen,
            f"{WORSE - 1:.0%} worse",
            crowded <= WORSE * alone,
        )
    ]


def overload(quick: bool) -> Figures:
    """Half as many clients again as there are slots."""
    with served("vad", CLIENTS) as address:
        return speak(address, CLIENTS * 3 // 2, quick)


def overload_bars(found: Figures) -> list[Bar]:
    """What is asked of :func:`overload`."""
    refused, missed = found["refused"], found["missed"]
    right = refused == found["clients"] - CLIENTS and found["admitted"] == CLIENTS and not found["lost"]
    seen = f"{found['admitted']} admitted, {refused} refused; {missed:.2%} of hops late"
    wanted = f"refusals, {OVERLOAD_MISSES:.0%}"
    return [
        Bar(
            f"{found['clients']} clients for {CLIENTS} slots",
            seen,
            wanted,
            right and missed < OVERLOAD_MISSES,
        )
    ]


# Processes.


def command(module: str, *arguments: object) -> list[str]:
    """A program of crowd/."""
    return [sys.executable, "-m", f"crowd.{module}", *map(str, arguments)]


def child(module: str, *arguments: object) -> str:
    """What such a program prints."""
    return subprocess.run(
        command(module, *arguments), cwd=HERE, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def speak(address: tuple[str, int], count: int, quick: bool) -> Figures:
    """Latencies of so many speaking clients."""
    return json.loads(child("clients", "speak", *address, count, 4 if quick else 15))


@contextlib.contextmanager
def others(kind: str, address: tuple[str, int], count: int) -> Iterator[None]:
    """Clients of another kind, all of them connected."""
    process = subprocess.Popen(
        command("clients", kind, *address, count),
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise SystemExit(f"{count} {kind} clients did not connect")
        yield
    finally:
        process.stdin.close()
        process.wait(30)


SECTIONS: dict[str, tuple[Callable[[bool], Figures], Callable[[Figures], list[Bar]]]] = {
    "ratio": (ratio, ratio_bars),
    "capacity": (capacity, capacity_bars),
    "serve": (serve, serve_bars),
    "idle": (idle, lambda found: beside_bars(found, "silent clients")),
    "slowloris": (slowloris, lambda found: beside_bars(found, "unfinished requests")),
    "overload": (overload, overload_bars),
}


def markdown(bars: list[Bar]) -> str:
    """The table of a run."""
    lines = ["| figure | seen | asked | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {bar.what} | {bar.seen} | {bar.wanted} | {'ok' if bar.good else 'MISSED'} |" for bar in bars
    ]
    return "\n".join(lines) + "\n"


def save(found: dict[str, Figures], bars: list[Bar]) -> None:
    """Beside the other results."""
    from peers import host

    results = HERE / "results"
    (results / "streams.json").write_text(json.dumps({"host": host(), **found}, indent=1) + "\n")
    words = ", ".join(host().values())
    (results / "streams.md").write_text(f"`python benchmarks/streams.py`, `vad`, {words}\n\n{markdown(bars)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=SECTIONS, default=[])
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--strict", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Figures] = {}
    bars: list[Bar] = []
    table = Table("figure", "seen", "asked", "")
    for name, (run, judge) in SECTIONS.items():
        if not arguments.only or name in arguments.only:
            Console(stderr=True).print(f"{name} ...")
            found[name] = run(arguments.quick)
            bars += judge(found[name])
    for bar in bars:
        table.add_row(bar.what, bar.seen, bar.wanted, "ok" if bar.good else "MISSED")
    Console().print(table)
    if not arguments.no_save and not arguments.quick and not arguments.only:
        save(found, bars)
    return 4 if arguments.strict and not all(bar.good for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
