"""A server as a process, recordings, and what `streamssm run` says of them: for the tests of the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "examples" / "audio" / "speech.wav"
PROGRAM = [sys.executable, "-c", "from streamssm.cli import main; main()"]
Row = dict[str, Any]


class ServerProcess:
    """``streamssm serve`` on loopback."""

    def __init__(self, *options: object, port: int = 0):
        command = [*PROGRAM, "serve", "--port", str(port), *map(str, options)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        greeting = self._process.stderr.readline().decode()
        found = re.search(r"http://[\d.]+:(\d+)/", greeting)
        assert found is not None, greeting + self._process.stderr.read().decode()
        self.url, self.port = found[0], int(found[1])

    def close(self) -> None:
        """Be gone at once, as after a power cut."""
        self._process.kill()
        self._process.communicate()


def run_rows(source: Path, model: object = "vad") -> list[Row]:
    """The rows of ``streamssm run``."""
    command = [*PROGRAM, "run", "-q", str(model), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_wav(path: Path) -> tuple[int, np.ndarray]:
    """A mono wav of 16 bits: its rate and samples."""
    with wave.open(str(path), "rb") as file:
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")


def clip(path: Path, seconds: float) -> Path:
    """The beginning of the recording."""
    rate, samples = read_wav(SPEECH)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples[: round(seconds * rate)].tobytes())
    return path
