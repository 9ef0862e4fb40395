"""The parent's side of the pipe: a peer's process, pinned to the core that is measured."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
#: one thread in every library that asks the environment, and no library that asks the network
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


class WorkerError(Exception):
    """The worker answered that it failed, or died; ``cannot`` if the peer has no way to do it."""

    def __init__(self, why: str, cannot: bool = False):
        super().__init__(why)
        self.cannot = cannot


class Worker:
    """One process of one peer, model and precision."""

    def __init__(
        self,
        python: Path,
        module: str,
        arguments: tuple[str, ...],
        log: Path,
        core: int | None,
        extra: Mapping[str, str] = {},
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        environment = os.environ | ENVIRONMENT | extra | {"PYTHONPATH": str(PACKAGE.parent)}
        pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-P", "-m", f"sidebyside.workers.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                preexec_fn=pin,
                start_new_session=True,
                text=True,
                bufsize=1,
            )

    def ask(self, do: str, limit: float = 600.0, **order: Any) -> dict[str, Any]:
        """Give an order and wait for its answer.

        Raises:
            WorkerError: it failed, died, or took longer than ``limit`` seconds (it is then ended).
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do} | order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._death()) from None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.close()
            raise WorkerError(f"no answer to {do} within {limit:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self._death())
        answer = json.loads(line)
        if not answer.pop("ok"):
            raise WorkerError(answer["why"], answer.get("cannot", False))
        return answer

    def close(self) -> None:
        """End the process and what it has started: OpenVINO's compression leaves children that keep our pipes
        open, and may never end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _death(self) -> str:
        self.process.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:300] if lines else "nothing on stderr"
        return f"the process ended with {self.process.returncode}: {last}"
