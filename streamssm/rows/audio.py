"""What a model gives as samples: not rows of numbers, but stretches of frames, for a sound file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamssm.errors import UsageError
from streamssm.manifest import Manifest, Output
from streamssm.outputs import Outputs
from streamssm.rows.base import Column, Row


class AudioRows:
    """One row ``{"samples": float32 [n, channels]}`` for each push that gives samples.

    How frames fall into rows depends on the pushes; the frames one after the other do not.
    """

    kind = "audio"

    def __init__(self, manifest: Manifest):
        output = samples_output(manifest)
        if output is None:
            raise UsageError(f"--emit audio: {manifest.name} gives no samples; use --emit items")
        self._output = output.name
        self.columns = (Column("samples", "value", output.shape),)

    def push(self, outputs: Outputs) -> list[Row]:
        """These frames."""
        frames = outputs[self._output]
        if not len(frames):
            return []
        return [{"samples": np.array(frames, np.float32).reshape(len(frames), -1)}]

    def flush(self) -> list[Row]:
        """Nothing waits for the end."""
        return []

    def pass_over(self, items: int) -> None:
        """Frames have no times; what is missing must be pushed as silence instead."""

    def state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


def samples_output(manifest: Manifest) -> Output | None:
    """The first output of samples, of one channel or several."""
    outputs = (output for output in manifest.outputs if output.kind == "samples" and len(output.shape) <= 1)
    return next(outputs, None)
