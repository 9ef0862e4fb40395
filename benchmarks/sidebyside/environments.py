"""The peers' environments: one for each section of ``peers-requirements.txt``, made once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

PINS = Path(__file__).resolve().parents[1] / "peers-requirements.txt"

# AMX off: llama.cpp built with it crashes on quantised Mamba where the machine has it. -march=native
# would switch it on whatever CMake says, hence the compiler flags.
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_LLAMA_CMAKE = (
    "GGML_NATIVE=ON",
    "GGML_AMX_TILE=OFF",
    "GGML_AMX_INT8=OFF",
    "GGML_AMX_BF16=OFF",
    "LLAVA_BUILD=OFF",
    "LLAMA_BUILD_TOOLS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_SERVER=OFF",
)


def sections() -> dict[str, list[str]]:
    """The lines of each environment."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in PINS.read_text().splitlines():
        line = line.strip()
        if line.startswith("["):
            lines = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def pip_calls(lines: Iterable[str]) -> list[list[str]]:
    """Arguments of ``pip install``: all plain lines together, and each line with options alone."""
    plain = [line for line in lines if not line.startswith("--")]
    return [plain, *(line.split() for line in lines if line.startswith("--"))]


def build_variables(name: str, jobs: int) -> dict[str, str]:
    """What the build of this environment's packages is told."""
    if name != "llama":
        return {}
    arguments = [f"-D{option}" for option in _LLAMA_CMAKE]
    if platform.machine() in ("x86_64", "AMD64"):
        arguments += [f"-DCMAKE_C_FLAGS='{_NO_AMX}'", f"-DCMAKE_CXX_FLAGS='{_NO_AMX}'"]
    return {"CMAKE_ARGS": " ".join(arguments), "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}


class Environments:
    """The environments in a folder, and what became of each."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.sections = sections()

    def python(self, name: str) -> Path:
        """The interpreter of an environment."""
        return self.cache / "envs" / name / "bin" / "python"

    def why_not(self, name: str) -> str | None:
        """Why an environment cannot be used; None if it can."""
        state = self._state(name)
        if state is None:
            return "not set up: run with --setup"
        return state["failed"]

    def known(self, name: str) -> bool:
        """Whether its making was tried with the present pins."""
        return self._state(name) is not None

    def set_up(self, names: Iterable[str], say: Callable[[str], None], jobs: int) -> None:
        """Make what is missing or failed; failures are recorded, not raised."""
        for name in names:
            if self.known(name) and self.why_not(name) is None:
                continue
            say(f"{name}: installing {', '.join(self.sections[name])}")
            start = time.monotonic()
            failed = self._make(name, jobs)
            seconds = time.monotonic() - start
            record = {"digest": self._digest(name), "failed": failed, "seconds": round(seconds)}
            self._record(name).write_text(json.dumps(record))
            say(f"{name}: {failed or 'ready'} after {seconds:.0f} s")

    def _make(self, name: str, jobs: int) -> str | None:
        """Why it failed, or None."""
        folder = self.cache / "envs" / name
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        log = self.cache / "logs" / f"setup-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | build_variables(name, jobs)
        with log.open("w") as out:
            for packages in pip_calls(self.sections[name]):
                if not packages:
                    continue
                command = [str(self.python(name)), "-m", "pip", "install", "--disable-pip-version-check"]
                done = subprocess.run(
                    [*command, *packages], env=environment, stdout=out, stderr=subprocess.STDOUT, check=False
                )
                if done.returncode:
                    errors = [
                        line for line in log.read_text().splitlines() if "ERROR" in line or "error:" in line
                    ]
                    return (errors[-1].strip() if errors else f"pip ended with {done.returncode}")[:300]
        return None

    def _digest(self, name: str) -> str:
        text = "\n".join(self.sections[name]) + repr(build_variables(name, 0)) + sys.version
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _record(self, name: str) -> Path:
        return self.cache / "envs" / f"{name}.json"

    def _state(self, name: str) -> dict[str, str | None] | None:
        try:
            state = json.loads(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        return state if state["digest"] == self._digest(name) else None
