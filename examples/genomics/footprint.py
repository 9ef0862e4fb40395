"""Memory and time of the detectors, each in a process of its own, on one thread.

python examples/genomics/footprint.py ours|channels|kmer|mappy MODEL CACHE READS   (what `measure` runs)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from genomes import DataError

CHANNELS = 512
Run = Callable[[np.ndarray], int]  # of reads [n, 400]; how many bases it went through
NAMES = {
    "ours": "streamssm host, one read at a time",
    "channels": f"streamssm host, {CHANNELS} channels at once",
    "kmer": "4-mer logistic regression",
    "mappy": "mappy, full reference",
}


def measure(args, reads: np.ndarray) -> dict[str, dict[str, float]]:
    """Megabytes that a process grows by, and microseconds for 100 bases, of each detector that is here."""
    wanted = ["ours", "channels"]
    if args.peers:
        from host_peers import Alignment

        wanted += ["kmer", *(["mappy"] if Alignment.installed() else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reads.npy"
        np.save(path, reads)
        return {NAMES[kind]: _measured(kind, str(args.model), str(args.cache), str(path)) for kind in wanted}


def _measured(*arguments: str) -> dict[str, float]:
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=os.environ | threads, capture_output=True, text=True
    )
    if done.returncode:
        raise DataError(f"{arguments[0]}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _resident() -> float:
    """Megabytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _one(kind: str, model: str, cache: str, path: str) -> dict[str, float]:
    reads = np.load(path)
    prepare = {"ours": _ours, "channels": _channels, "kmer": _kmer, "mappy": _mappy}[kind]
    open_it = prepare(model, Path(cache))  # imports what it needs
    before = _resident()
    run = open_it()
    run(reads[:10])
    began = time.process_time()
    bases = run(reads)
    took = time.process_time() - began
    return {"megabytes": _resident() - before, "us_per_100": took / bases * 1e8}


def _ours(name: str, cache: Path) -> Callable[[], Run]:
    import streamssm.backends.cpu
    import streamssm.stream

    def opened() -> Run:
        model = streamssm.load(name)

        def run(reads: np.ndarray) -> int:
            for read in reads.astype(np.int64):
                stream = model.stream()
                for at in range(0, read.size, 100):
                    stream.push(read[at : at + 100])
            return reads.size

        return run

    return opened


def _channels(name: str, cache: Path) -> Callable[[], Run]:
    import streamssm.backends.cpu
    import streamssm.pool

    def opened() -> Run:
        pool = streamssm.load(name).pool(CHANNELS)
        for key in range(CHANNELS):
            pool.open(key)

        def run(reads: np.ndarray) -> int:
            rows = np.resize(reads, (CHANNELS, reads.shape[1])).astype(np.int64)
            for at in range(0, rows.shape[1], 100):
                pool.push_rows(range(CHANNELS), rows[:, at : at + 100])
                pool.step_rows()
            return rows.size

        return run

    return opened


def _kmer(name: str, cache: Path) -> Callable[[], Run]:
    from host_peers import KmerRegression

    return lambda: _lengths(KmerRegression.cached(cache).scores)


def _mappy(name: str, cache: Path) -> Callable[[], Run]:
    import mappy  # noqa: F401
    from host_peers import Alignment

    return lambda: _lengths(Alignment(cache).scores)


def _lengths(scores: Callable[[np.ndarray], np.ndarray]) -> Run:
    """A detector that starts again after 100, 200 and 400 bases: it goes through 700 of every read."""

    def run(reads: np.ndarray) -> int:
        scores(reads)
        return 700 * len(reads)

    return run


if __name__ == "__main__":
    print(json.dumps(_one(*sys.argv[1:])))
