"""The worker's side of the pipe: one process, one model of one peer, orders as JSON lines.

    {"do": "prepare"}                            make the peer's files from the weights; slow, kept
    {"do": "open"}                               open them: versions and memory before and after
    {"do": "logits", "size", "count", "keep", "out"}  the last ``keep`` of ``count`` tokens' logits, fed in
                                                 pieces of ``size`` from a new state
    {"do": "time", "case", "count"}              nanoseconds of each of ``count`` steps, after warm-up
    {"do": "age", "marks", "window", "seconds"}  one stream through these ages: times of the last steps
    {"do": "memory"}                             resident memory now and at its highest

Every answer is a JSON line: ``{"ok": true, ...}``, or ``{"ok": false, "why": ...}`` after an exception,
which the worker survives. What the peer prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidebyside.shapes import SHAPES, Shape, draw_tokens

Call = Callable[[], object]
Advance = Callable[[int, float], int]


@dataclass(frozen=True)
class Case:
    """What one timed step is: so many tokens in one call, logits of all of them or of the last."""

    size: int
    last: bool = False
    from_start: bool = False
    warm: int = 1


CASES = {
    "decode": Case(1, warm=2),
    "push16": Case(16),
    "push16-last": Case(16, last=True),
    "prefill": Case(512, from_start=True, warm=0),
    "prefill-last": Case(512, last=True, from_start=True, warm=0),
}


class CannotError(Exception):
    """The peer has no way to do this; the message is what the table prints."""


class TokenPeer:
    """A token model of one peer. A subclass has:

    ``versions``  the packages to report;
    ``prepare``   make the file(s) at ``self.file(...)`` from ``load_weights(self.folder)``;
    ``open``      open them with one thread;
    ``reset``     start a new sequence, to be fed ``size`` tokens at a time;
    ``push``      int64 tokens [T] in, the logits out in the peer's own form, the state carried on;
                  ``last`` asks for the logits of the last token alone;
    ``logits``    that form as an array [T or 1, vocabulary].
    """

    versions: tuple[str, ...] = ()

    def __init__(self, shape: Shape, precision: str, folder: Path):
        self.shape, self.precision, self.folder = shape, precision, folder

    def file(self, suffix: str) -> Path:
        """A file of this peer and precision."""
        return self.folder / f"{type(self).__name__.lower()}-{self.precision}{suffix}"

    def prepare(self) -> None:
        """Nothing to make, unless the peer says otherwise."""

    def open(self) -> None:
        raise NotImplementedError

    def reset(self, size: int) -> None:
        raise NotImplementedError

    def push(self, tokens: np.ndarray, last: bool) -> Any:
        raise NotImplementedError

    def logits(self, result: Any) -> np.ndarray:
        return np.asarray(result)

    def facts(self) -> dict[str, Any]:
        """More to report: instruction sets, threads, kernels."""
        return {}

    def start(self, case: str) -> tuple[Call, Call]:
        """What is timed, and what is done before each timing."""
        spec = CASES[case]
        tokens = draw_tokens(self.shape, max(spec.size, 256 * spec.size if spec.size < 64 else 0))
        chunks = [np.ascontiguousarray(part) for part in tokens.reshape(-1, spec.size)]
        turn, push, last = 0, self.push, spec.last
        self.reset(spec.size)

        def step() -> object:
            nonlocal turn
            turn = (turn + 1) % len(chunks)
            return push(chunks[turn], last)

        return step, (lambda: self.reset(spec.size)) if spec.from_start else (lambda: None)

    def check(self, size: int, count: int, keep: int) -> np.ndarray:
        """Logits of the last ``keep`` of ``count`` tokens from a new state, in calls of ``size``."""
        self.reset(size)
        parts = draw_tokens(self.shape, 512)[:count].reshape(-1, size)
        results = [np.array(self.logits(self.push(part, False))[-keep:]) for part in parts]
        return np.concatenate(results)[-keep:]

    def live(self) -> tuple[Advance, Call]:
        """A stream to grow old: feed so many items, or as many as the time allows; and one step.

        One item at a time; a peer with a faster way to the same state has its own.
        """
        step, _ = self.start("decode")

        def advance(items: int, end: float) -> int:
            for index in range(items):
                step()
                if index % 256 == 255 and time.monotonic() > end:
                    return index + 1
            return items

        return advance, step


def resident() -> dict[str, float]:
    """Megabytes resident now and at the highest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(values[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def thread_times() -> dict[str, int]:
    """Nanoseconds on a processor, by thread."""
    times = {}
    for path in Path("/proc/self/task").iterdir():
        try:
            times[path.name] = int((path / "schedstat").read_text().split()[0])
        except (OSError, ValueError):
            continue
    return times


def measure(peer: Any, case: str, count: int, warm: int) -> dict[str, Any]:
    """Times of ``count`` steps, and how much of a processor each thread used meanwhile."""
    step, before = peer.start(case)
    for _ in range(warm):
        before()
        step()
    times, clock = np.zeros(count, np.int64), time.perf_counter_ns
    began, threads = clock(), thread_times()
    for index in range(count):
        before()
        start = clock()
        step()
        times[index] = clock() - start
    after = thread_times()
    wall = clock() - began
    used = {name: value - threads.get(name, 0) for name, value in after.items()}
    busy = sorted((value / wall for value in used.values() if value > 0.02 * wall), reverse=True)
    return {"ns": times.tolist(), "busy": busy}


class Server:
    """Answers orders for one peer."""

    def __init__(self, peer: Any, versions: dict[str, str]):
        self.peer, self.versions = peer, versions

    def prepare(self) -> dict[str, Any]:
        self.peer.prepare()
        return {}

    def open(self) -> dict[str, Any]:
        bare = resident()["now"]
        start = time.perf_counter()
        self.peer.open()
        seconds = time.perf_counter() - start
        return {"bare_mb": bare, "seconds": seconds, "versions": self.versions, "facts": self.peer.facts()}

    def logits(self, size: int, count: int, keep: int, out: str) -> dict[str, Any]:
        np.save(out, self.peer.check(size, count, keep))
        return {}

    def time(self, case: str, count: int, warm: int | None = None) -> dict[str, Any]:
        default = CASES[case].warm if case in CASES else 1
        return measure(self.peer, case, count, default if warm is None else warm)

    def age(self, marks: list[int], window: int, seconds: float) -> dict[str, Any]:
        advance, step = self.peer.live()
        position, found, end = 0, [], time.monotonic() + seconds
        clock = time.perf_counter_ns
        for mark in marks:
            steps = min(window, mark // 2)
            position += advance(mark - steps - position, end)
            if position < mark - steps:
                break
            times = []
            for _ in range(steps):
                start = clock()
                step()
                times.append(clock() - start)
            position += steps
            found.append({"age": mark, "ns": times, "resident_mb": resident()["now"]})
        return {"ages": found, "reached": position}

    def memory(self) -> dict[str, Any]:
        return resident()


def serve(make: Callable[[Shape, str, Path], Any]) -> None:
    """Answer orders until stdin ends; ``argv`` is the model, the precision and the model's folder."""
    import importlib.metadata

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that nothing a peer prints gets between the answers
    model, precision, folder = sys.argv[1:4]
    peer = make(SHAPES.get(model), precision, Path(folder))
    versions = {name: importlib.metadata.version(name) for name in peer.versions}
    server = Server(peer, versions)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"ok": True} | getattr(server, order.pop("do"))(**order)
        except CannotError as error:
            answer = {"ok": False, "cannot": True, "why": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"ok": False, "why": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(answer), file=answers)
