"""Voice activity detection on live audio: the built-in ``vad`` and Silero, each in its own rhythm.

``precision`` names the detector. A step is one hop of ours (10 ms) or one chunk of Silero's (32 ms);
``facts`` gives the seconds of audio that a step stands for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sidebyside.wire import Call, serve

RATE = 16_000


def audio(size: int) -> np.ndarray:
    """Ten seconds of noise with bursts, in pieces of ``size`` samples."""
    rng = np.random.default_rng(0)
    x = 0.02 * rng.standard_normal(10 * RATE) * (1 + 20 * (np.arange(10 * RATE) // RATE % 2))
    x = np.clip(x, -1, 1).astype(np.float32)
    return x[: len(x) // size * size].reshape(-1, size)


class Ours:
    """``streamssm.load("vad")``, a push a hop."""

    versions = ("streamssm", "onnxruntime")

    def __init__(self, shape: object, precision: str, folder: Path):
        pass

    def prepare(self) -> None:
        """The built-in model needs nothing."""

    def open(self) -> None:
        """Open the model; its hop is a block."""
        import streamssm

        self.model = streamssm.load("vad")
        self.hop = self.model.manifest.input.hop
        self.stream = self.model.stream(block=self.hop)

    def facts(self) -> dict[str, Any]:
        """Seconds a step."""
        return {"seconds": self.hop / RATE, "kernels": str(getattr(self.model.backend, "kernels", None))}

    def start(self, case: str) -> tuple[Call, Call]:
        """Push the next hop."""
        chunks, turn, push = audio(self.hop), 0, self.stream.push

        def step() -> object:
            nonlocal turn
            turn = (turn + 1) % len(chunks)
            return push(chunks[turn])

        return step, lambda: None


class Silero:
    """The ONNX file of its wheel, called as its own wrapper does: 64 samples of context and 512 new ones."""

    versions = ("silero-vad", "onnxruntime")

    def __init__(self, shape: object, precision: str, folder: Path):
        pass

    def prepare(self) -> None:
        """The file lies in the wheel."""

    def open(self) -> None:
        """Open the file with one thread."""
        import onnxruntime

        package = Path(importlib.util.find_spec("silero_vad").origin).parent
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = str(package / "data" / "silero_vad.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def facts(self) -> dict[str, Any]:
        """Seconds a step."""
        return {"seconds": 512 / RATE}

    def start(self, case: str) -> tuple[Call, Call]:
        """Run the next chunk with the state of the last."""
        chunks, turn, run = audio(512), 0, self.session.run
        state, past = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
        rate = np.array(RATE, np.int64)

        def step() -> object:
            nonlocal turn, state, past
            turn = (turn + 1) % len(chunks)
            block = chunks[turn][None]
            feed = {"input": np.concatenate([past, block], 1), "state": state, "sr": rate}
            probability, state = run(None, feed)
            past = block[:, -64:]
            return probability

        return step, lambda: None


def make(shape: object, precision: str, folder: Path) -> Ours | Silero:
    """The detector by its name."""
    return (Silero if precision == "silero" else Ours)(shape, precision, folder)


if __name__ == "__main__":
    serve(make)
