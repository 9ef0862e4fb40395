"""The live line on a terminal: how far, how fast, and what the first output says."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from rich.console import Console

from streamssm.report import RunReport

INTERVAL = 0.1  # seconds between redraws
_BAR = 20


class Meter:
    """Redraws one line of stderr; silent when stderr is not a terminal."""

    def __init__(self, report: RunReport, total: int | None):
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal  # looks at the environment each time
        self._report, self._total = report, total
        self._drawn, self._next = False, 0.0

    def update(self, output: npt.NDArray[np.float32]) -> None:
        """Redraw, at most ten times a second."""
        if not self._live or (now := time.monotonic()) < self._next:
            return
        self._next = now + INTERVAL
        self.clear()
        self._console.print(self._text(output), end="", no_wrap=True, overflow="crop")
        self._drawn = True

    def clear(self) -> None:
        """Take the line away, so that other text can be written."""
        if self._drawn:
            self._console.file.write("\r\x1b[K")
            self._console.file.flush()
            self._drawn = False

    def _text(self, output: npt.NDArray[np.float32]) -> str:
        report = self._report
        parts = [f"{report.items} items" if report.seconds is None else f"{report.seconds:8.2f} s"]
        if self._total:
            parts.append(f"{report.items / self._total:4.0%}")
        if report.real_time_factor is not None:
            parts.append(f"real-time factor {report.real_time_factor:.4f}")
        if report.inbox is not None:
            waiting = report.inbox.waiting / report.inbox.capacity
            parts.append(f"queue {waiting:4.0%}")
        if report.gaps:
            parts.append(f"[red]gaps {sum(gap.count for gap in report.gaps.values())}[/]")
        if report.manifest.outputs[0].kind == "probability" and output.size:
            level = float(np.clip(output[-1].flat[0], 0.0, 1.0))
            filled = round(level * _BAR)
            parts.append(f"[cyan]{'━' * filled}[/][dim]{'━' * (_BAR - filled)}[/] {level:.2f}")
        return "  ".join(parts)
