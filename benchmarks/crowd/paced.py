"""A pool that is fed in real time, on one core and in one thread.

python -m crowd.paced MODEL SECONDS GATHER [STREAMS]
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

import numpy as np

import streamssm
from streamssm.draw import draw_input

MISSES = 0.001  # of blocks, at most


class Feed:
    """``count`` streams in real time. Stream i begins ``phase[i]`` seconds after the others, at random
    within a block; a hop is due when its last item has come into being."""

    def __init__(self, model: streamssm.Model, count: int, block: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.pool = model.pool(count, block, limit=1 << 20)
        self.hop, rate = model.manifest.block, float(model.manifest.input.rate or 0)
        self.lasts, self.block_lasts = self.hop / rate, block / rate
        # hops in the order in which they are due, all streams once
        self.phase = np.sort(rng.uniform(0, self.lasts, count))
        self.delay = self.phase + self.lasts * rng.integers(0, block // self.hop, count)
        self.chunks = [draw_input(model.manifest, self.hop, rng) for _ in range(8)]
        self.given = [0] * count  # hops by stream
        self.blocks = [0] * count  # that results have come of
        for key in range(count):
            self.pool.open(key)

    def run(self, seconds: float, gather: float) -> dict[str, float]:
        """Feed what is due, step the pool every ``gather`` seconds; latencies are from the time at
        which a block's last item was due to when its results are there. ``busy``: the part of the time
        that the processor worked; ``streams_per_cpu``: how many it would carry if it did all the time.
        """
        latencies: list[float] = []
        began, cpu = time.perf_counter(), time.thread_time()
        end, turn, place, stepped = began + seconds, 0, 0, began
        push, count, chunks = self.pool.push, len(self.phase), self.chunks
        while (now := time.perf_counter()) < end:
            while now >= began + (turn + 1) * self.lasts + self.phase[place]:
                if turn * self.lasts + self.phase[place] >= self.delay[place] - 1e-9:
                    push(place, chunks[turn % len(chunks)])
                place += 1
                if place == count:
                    place, turn = 0, turn + 1
            if now - stepped >= gather:
                stepped = now
                self._note(self.pool.step(), began, latencies)
            time.sleep(max(0.0, min(self.lasts / 10, stepped + gather - time.perf_counter())))
        cpu = time.thread_time() - cpu
        spent = {"busy": cpu / seconds, "streams_per_cpu": len(latencies) * self.block_lasts / cpu}
        return self._summary(np.array(latencies)) | spent

    def _note(self, results: list, began: float, latencies: list[float]) -> None:
        now = time.perf_counter()
        for key, _ in results:
            self.blocks[key] += 1
            latencies.append(now - began - self.delay[key] - self.blocks[key] * self.block_lasts)

    def _summary(self, late: np.ndarray) -> dict[str, float]:
        """A block is missed if its results are not there when the stream's next block is whole."""
        waiting = sum(self.pool.pending(key) >= 2 * self.pool.block for key in self.pool)
        missed = (int((late > self.block_lasts).sum()) + waiting) / max(1, len(late) + waiting)
        p50, p99 = np.quantile(late, [0.5, 0.99]) if len(late) else (np.inf, np.inf)
        return {"missed": missed, "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3}


def paced(model: str, count: int, seconds: float, gather: float) -> dict[str, float]:
    """One run at a number of streams, blocks of four hops."""
    opened = streamssm.load(model)
    Feed(opened, count, 4 * opened.manifest.block).run(0.5, gather)  # warms up
    feed = Feed(opened, count, 4 * opened.manifest.block)
    return {"streams": count} | feed.run(seconds, gather)


def capacity(model: str, seconds: float, gather: float) -> Iterator[dict[str, float]]:
    """Runs in search of the most streams with fewer than MISSES of the blocks missed: doubled while that
    goes well, then halved in between."""
    good, bad, count = 0, 0, 100
    while count > good and (not bad or bad - good > max(16, good // 16)):
        found = paced(model, count, seconds, gather)
        yield found
        if found["missed"] < MISSES:
            good = count
        else:
            bad = count
        count = (good + bad) // 2 if bad else 2 * count


def main() -> None:
    """MODEL SECONDS GATHER [STREAMS]: on one core, a JSON line for each run."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    model, seconds, gather, *count = sys.argv[1:]
    one = (paced(model, int(n), float(seconds), float(gather)) for n in count)
    for found in one if count else capacity(model, float(seconds), float(gather)):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
