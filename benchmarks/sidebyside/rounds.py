"""Open every peer of a group, check its logits, then time them all in turn, round after round."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sidebyside.environments import Environments
from sidebyside.plan import CONSISTENT, EXACT, Effort, Entry, effort
from sidebyside.shapes import Shape, model_folder, save_weights
from sidebyside.truth import ITEMS, PREFILL, error, truth
from sidebyside.wire import CASES
from sidebyside.worker import Worker, WorkerError

#: which split of the check speaks for a case
CHECKED_BY = {"decode": "1", "push16": "16", "push16-last": "16", "prefill": "64", "prefill-last": "64"}
#: a round of a tiny model takes about so long, whoever runs it
ROUND_NS = 0.2e9


@dataclass
class Bench:
    """Where things are and how they are run."""

    cache: Path
    python: Path
    core: int | None
    quick: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.environments = Environments(self.cache)

    def worker(
        self, module: str, environment: str | None, arguments: tuple[str, ...], pinned: bool = True
    ) -> Worker:
        """Start a process of the peer's environment.

        Raises:
            WorkerError: the environment is not there.
        """
        if environment is not None and (why := self.environments.why_not(environment)):
            raise WorkerError(f"cannot be installed: {why}")
        python = self.python if environment is None else self.environments.python(environment)
        log = self.cache / "logs" / f"{module}-{'-'.join(arguments[:2])}{'' if pinned else '-prepare'}.log"
        return Worker(python, module, arguments, log, self.core if pinned else None)


@dataclass
class Row:
    """One peer in one group: what is known of it, and its process while the group runs."""

    entry: Entry
    worker: Worker | None = None
    why: str | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float | str] = field(default_factory=dict)
    exact: dict[str, bool] = field(default_factory=dict)
    cases: dict[str, Any] = field(default_factory=dict)
    peak: float | None = None

    def result(self) -> dict[str, Any]:
        """What is kept of it."""
        keys = ("why", "opened", "memory", "errors", "exact", "cases", "peak")
        values = {key: getattr(self, key) for key in keys}
        return {"title": self.entry.title, "precision": self.entry.precision} | values


def run_group(bench: Bench, shape: Shape, precision: str, group: list[Entry]) -> dict[str, Any]:
    """Everything about one model at one precision."""
    folder = model_folder(bench.cache, shape)
    save_weights(folder, shape)
    expected = truth(shape, folder)
    rows = [Row(entry) for entry in group]
    with ExitStack() as stack:
        for row in rows:
            try:
                _open(bench, shape, row, stack)
                _check(shape, row, expected)
            except WorkerError as failure:
                row.why = str(failure)
                row.worker = None
            bench.say(f"  {row.entry.title}: {_described(row)}")
        machine = bench.worker("machine", None, ("-", "-", str(folder.parent)))
        stack.enter_context(machine)
        machine.ask("prepare")
        facts = machine.ask("open")
        live = [row for row in rows if row.worker is not None]
        core = {case: _time_case(bench, shape, case, live, machine) for case in CASES}
        for row in live:
            row.peak = _peak(row)
    return {
        "model": shape.name,
        "precision": precision,
        "rows": {row.entry.key: row.result() for row in rows},
        "machine": {"facts": facts["facts"], "cases": core},
    }


def make_files(bench: Bench, shape: Shape, entry: Entry) -> tuple[str, ...]:
    """The weights, and the peer's own files of them; returns what its worker is called with.

    In a process of its own, so that what this takes is not counted as memory.

    Raises:
        WorkerError: it failed.
    """
    folder = model_folder(bench.cache, shape)
    save_weights(folder, shape)
    arguments = (shape.name, entry.precision, str(folder))
    with bench.worker(entry.peer.module, entry.peer.environment, arguments, pinned=False) as maker:
        maker.ask("prepare", limit=1800)
    return arguments


def _open(bench: Bench, shape: Shape, row: Row, stack: ExitStack) -> None:
    arguments = make_files(bench, shape, row.entry)
    peer = row.entry.peer
    row.worker = stack.enter_context(bench.worker(peer.module, peer.environment, arguments))
    row.opened = row.worker.ask("open")


def _check(shape: Shape, row: Row, expected: np.ndarray) -> None:
    """Compare the logits of every way to feed the tokens with float64, and with each other."""
    single = _logits(row, 1, ITEMS)
    row.errors["1"] = error(single, expected[:ITEMS])
    row.memory = row.worker.ask("memory")
    quantised = row.entry.precision != "fp32"
    row.exact["decode"] = quantised or row.errors["1"] <= EXACT
    for size in (16, 64):
        try:
            seen = _logits(row, size, ITEMS)
        except WorkerError as failure:
            row.errors[str(size)] = str(failure)
            _revive(row)
            continue
        row.errors[str(size)] = error(seen, expected[:ITEMS])
        same = error(seen, single) <= CONSISTENT if quantised else row.errors[str(size)] <= EXACT
        row.exact["push16" if size == 16 else "prefill"] = same
    if not quantised and row.exact.get("prefill"):
        row.errors[str(PREFILL)] = error(_logits(row, PREFILL, PREFILL), expected[ITEMS:])
        row.exact["prefill"] = row.errors[str(PREFILL)] <= EXACT
    for case in ("push16", "prefill"):
        if case in row.exact:
            row.exact[f"{case}-last"] = row.exact[case]


def _logits(row: Row, size: int, count: int) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        row.worker.ask("logits", size=size, count=count, keep=ITEMS, out=file.name)
        return np.load(file.name)


def _revive(row: Row) -> None:
    """A peer that failed must still answer; if it died, it is out."""
    if row.worker.process.poll() is not None:
        raise WorkerError(f"died: {row.errors}")


def _described(row: Row) -> str:
    if row.why is not None:
        return row.why[:160]
    seen = [f"{size}: {value:.1e}" for size, value in row.errors.items() if isinstance(value, float)]
    wrong = [case for case, exact in row.exact.items() if not exact and "-last" not in case]
    return f"relative error by items a call {', '.join(seen)}" + (
        f"; INEXACT {', '.join(wrong)}" if wrong else ""
    )


def _time_case(bench: Bench, shape: Shape, case: str, rows: list[Row], machine: Worker) -> dict[str, Any]:
    """Rounds of one case over all rows that have it; returns what the core did meanwhile."""
    plan = effort(shape, case, bench.quick)
    counts = {row.entry.key: plan.count for row in rows}
    pooled: dict[str, list[list[int]]] = {row.entry.key: [] for row in rows}
    shares: dict[str, list[list[float]]] = {row.entry.key: [] for row in rows}
    waiting, core = list(rows), {}
    for turn in range(plan.rounds):
        first = turn % max(1, len(waiting))  # so that nobody always follows the same neighbour
        for row in waiting[first:] + waiting[:first]:
            key = row.entry.key
            if shape.tiny and turn == 0:
                counts[key] = _affordable(row, case, plan)
            if not _timed(row, case, counts[key], plan.warm, pooled[key], shares[key]):
                waiting = [other for other in waiting if other is not row]
        _core_round(shape, case, machine, core)
    ours = [statistics.median(times) for times in pooled.get("ours", [])]
    for row in rows:
        if times := pooled[row.entry.key]:
            row.cases[case] = summary(times, ours, shares[row.entry.key])
    bench.say(f"  {case}: {plan.rounds} rounds of {len(waiting)} peers")
    return core


def _can(row: Row, case: str) -> bool:
    """Whether its check found a way to do this."""
    return case in row.exact or not isinstance(row.errors.get(CHECKED_BY[case], 0.0), str)


def _name(row: Row, case: str) -> str:
    """What a row is asked for: ours gives every item's logits even where theirs give the last ones."""
    return case.removesuffix("-last") if row.entry.key == "ours" else case


def _affordable(row: Row, case: str, plan: Effort) -> int:
    """Steps a round: those planned, fewer for a peer so slow that they would take long."""
    if not _can(row, case):
        return 0
    try:
        step = min(row.worker.ask("time", case=_name(row, case), count=5, warm=2)["ns"])
    except WorkerError:
        return 1  # which fails again, and is then reported
    return max(min(plan.count, 20), min(plan.count, int(ROUND_NS / step)))


def _timed(
    row: Row, case: str, count: int, warm: int, times: list[list[int]], shares: list[list[float]]
) -> bool:
    """One round of one row; False when there will be no other."""
    if not _can(row, case):
        row.cases[case] = {"why": row.errors[CHECKED_BY[case]]}
        return False
    # for the slow ones as many as are timed are enough
    warm = min(warm, count)
    try:
        answer = row.worker.ask("time", case=_name(row, case), count=count, warm=warm)
    except WorkerError as failure:
        row.cases[case] = {"why": str(failure)}
        return False
    times.append(answer["ns"])
    shares.append(answer["busy"])
    return row.exact.get(case, True)  # once is enough for what is not compared


def _core_round(shape: Shape, case: str, machine: Worker, core: dict[str, Any]) -> None:
    """Bandwidth beside the cases that it bounds, matrix products beside the others."""
    if shape.tiny:
        return
    measures = ("gemm-ort", "gemm-numpy") if case.startswith("prefill") else ("read",)
    for measure in measures:
        core.setdefault(measure, []).append(min(machine.ask("time", case=measure, count=3, warm=1)["ns"]))


def summary(times: list[list[int]], ours: list[float], shares: list[list[float]]) -> dict[str, Any]:
    """Nanoseconds a step over all rounds, and how many times ours, round by round."""
    every = np.concatenate([np.asarray(part) for part in times])
    rounds = [statistics.median(part) for part in times]
    ratios = [theirs / own for theirs, own in zip(rounds, ours, strict=False)]
    return {
        "median_ns": float(np.median(every)),
        "p99_ns": float(np.percentile(every, 99)),
        "min_ns": float(every.min()),
        "steps": len(every),
        "rounds_ns": rounds,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "processor_share": min(sum(part) for part in shares),
        "threads": max(len(part) for part in shares),
    }


def _peak(row: Row) -> float | None:
    try:
        return row.worker.ask("memory")["peak"]
    except WorkerError:
        return None
