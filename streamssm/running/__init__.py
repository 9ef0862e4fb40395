"""Running a model on a source: the loop, the place in the source, and saving both."""

from __future__ import annotations

from streamssm.running.loop import Loop
from streamssm.running.script import Run

__all__ = ["Loop", "Run"]
