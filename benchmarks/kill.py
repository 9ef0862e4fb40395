"""Kill ``streamssm run --save-state`` at random points, resume it, compare with a run left alone.

    python benchmarks/kill.py [--kills 200] [--seed 0] [--json FILE]

Every kill is a SIGKILL to a process of its own: while it starts, reads, writes, saves or ends. When a run has
got to its end its output is compared, byte for byte, with that of an uninterrupted run, and the next one
begins. Lines are counted as lost or doubled. Exits 4 if any is.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

PROGRAM = [sys.executable, "-c", "from streamssm.cli import main; main()"]
EVERY = 0.01  # seconds between snapshots: so that many kills meet one
_PATIENCE = 120.0  # seconds that one run may take


@dataclass(frozen=True)
class Case:
    """A run: the same but for its state every time. ``output`` is the name of the file it writes."""

    name: str
    model: str
    source: str
    options: tuple[str, ...]
    output: str


@dataclass
class Found:
    """What became of the kills of one case; ``saving`` of them left a snapshot half written."""

    case: str
    kills: int = 0
    saving: int = 0
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: int = 0

    @property
    def good(self) -> bool:
        """Whether every run ended with the bytes of one that was left alone."""
        return self.runs > 0 and not (self.lost or self.doubled or self.unequal)


class Killer:
    """Runs a case in a folder of its own, again and again."""

    def __init__(self, case: Case, folder: Path, rng: random.Random):
        self._case, self._folder, self._rng = case, folder, rng
        self._state, self._output = folder / "run.state", folder / case.output
        self.found = Found(case.name)
        took = time.monotonic()
        self._expected = self._alone()
        self._length = time.monotonic() - took

    def round(self, kills: int) -> None:
        """One run from its beginning to its end, with at most so many kills on the way."""
        for file in (self._state, self._output):
            file.unlink(missing_ok=True)
        while self._attempt(kill=kills > self.found.kills):
            pass
        self._compare()

    def _alone(self) -> bytes:
        subprocess.run([*self._command(), "--save-state", self._folder / "alone.state"], check=True)
        return self._output.read_bytes()

    def _command(self) -> list[str]:
        case = self._case
        return [*PROGRAM, "run", case.model, case.source, "-q", "-o", str(self._output), *case.options]

    def _attempt(self, kill: bool) -> bool:
        """Start the run, or go on with it, and kill it somewhere; whether it has to go on."""
        state = str(self._state)
        command = [*self._command(), "--save-state", state, "--resume", state, "--save-every", str(EVERY)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        if kill:
            self._wait(process)
            process.kill()
        _, errors = process.communicate(timeout=_PATIENCE)
        if process.returncode not in (0, -9):
            raise SystemExit(f"{self._case.name}: {errors.decode()}")
        self.found.kills += process.returncode == -9
        if process.returncode == -9:
            self.found.saving += any(self._folder.glob(".*.saving.*"))
        return process.returncode == -9

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """To a random point: of the start in one case of five, else of the work."""
        if self._rng.random() < 0.2:
            time.sleep(self._rng.uniform(0, self._length))
            return
        before = self._seen()
        while process.poll() is None and self._seen() == before:
            time.sleep(0.001)
        time.sleep(self._rng.uniform(0, 0.3))

    def _seen(self) -> tuple[int, int]:
        """Changes with everything that the run does."""
        files = [file for file in (self._state, self._output) if file.exists()]
        return sum(file.stat().st_mtime_ns for file in files), sum(file.stat().st_size for file in files)

    def _compare(self) -> None:
        output, found = self._output.read_bytes(), self.found
        found.runs += 1
        found.unequal += output != self._expected
        wanted, there = Counter(self._expected.splitlines()), Counter(output.splitlines())
        found.lost += (wanted - there).total()
        found.doubled += (there - wanted).total()


def run_case(case: Case, folder: Path, kills: int, seed: int) -> Found:
    """Kill the runs of one case so many times."""
    folder.mkdir()
    killer = Killer(case, folder, random.Random(seed))
    while killer.found.kills < kills:
        killer.round(kills)
    return killer.found


def write_voice(path: Path, seconds: float, rate: int, seed: int) -> None:
    """Noise that is loud for a while and quiet for a while, as 16-bit samples."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(round(seconds * rate))
    loud = np.repeat(rng.random(len(x) // rate * 2 + 2) < 0.5, rate // 2)[: len(x)]
    samples = (x * np.where(loud, 4000, 40)).clip(-32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def cases(folder: Path, model: str, rate: int, seconds: float) -> list[Case]:
    """A file to items, the same at another rate, and a folder of files to a table of events."""
    write_voice(folder / "voice.wav", seconds, rate, 0)
    write_voice(folder / "other.wav", seconds, 3 * rate // 2, 1)
    voices = folder / "voices"
    voices.mkdir()
    for number in range(5):
        write_voice(voices / f"{number}.wav", seconds / 5, rate, number)
    items = ("--emit", "items")
    return [
        Case("file, every item, jsonl", model, str(folder / "voice.wav"), items, "out.jsonl"),
        Case("file, converted rate, csv", model, str(folder / "other.wav"), items, "out.csv"),
        Case("folder, events, csv", model, str(voices), (), "out.csv"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of input")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console, results = Console(), []
    with tempfile.TemporaryDirectory() as temporary, Progress(console=console) as progress:
        folder = Path(temporary)
        chosen = cases(folder, "vad", 16000, arguments.seconds)
        for number, case in enumerate(progress.track(chosen)):
            kills = arguments.kills // len(chosen) + (number < arguments.kills % len(chosen))
            results.append(run_case(case, folder / f"case{number}", kills, arguments.seed + number))
    columns = ("kills", "saving", "runs", "lost", "doubled", "unequal")
    table = Table(
        "run", "kills", "of these while saving", "runs", "lines lost", "doubled", "unequal runs", ""
    )
    for found in results:
        values = (str(getattr(found, column)) for column in columns)
        table.add_row(found.case, *values, "ok" if found.good else "FAILED")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(found) for found in results], indent=1) + "\n")
    return 0 if all(found.good for found in results) else 4


if __name__ == "__main__":
    sys.exit(main())
