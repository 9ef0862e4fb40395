"""A hand-made voice detector: the level of frames of 80 samples at 8 kHz, smoothed, as a probability."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from toy_models import EMA, TOYS, Toy, manifest, state

from streamssm.manifest import EventRule, Input, Output

__all__ = ["HOP", "RATE", "TOYS", "recording", "voice_toy"]

RATE, HOP = 8000, 80


def voice_toy(**changes: object) -> Toy:
    graph = f"""voice (float[B, T] audio, float[B, 1] h) => (float[B, F, 1] voice, float[B, 1] next_h) {{
      shape = Constant <value = int64[4] {{0, -1, {HOP}, 1}}> ()
      frames = Reshape (audio, shape)
      sizes = Abs (frames)
      axis = Constant <value = int64[1] {{2}}> ()
      level = ReduceMean <keepdims = 0> (sizes, axis)
    {EMA.format(x="level", h="h", y="smooth", d=1)}
      next_h = Identity (smooth_last)
      middle = Constant <value = float {{0.02}}> ()
      slope = Constant <value = float {{200.0}}> ()
      apart = Sub (smooth, middle)
      steep = Mul (apart, slope)
      voice = Sigmoid (steep)
    }}"""
    fields = {
        "block": HOP,
        "events": EventRule("voice", "speech", min_on=0.05, min_off=0.1),
        "license": "Apache-2.0",
        "description": "a toy",
        **changes,
    }
    spec = Input("audio", "samples", "float32", (), rate=float(RATE), hop=HOP)
    outputs = [Output("voice", "probability", (1,), (1, HOP), ("speech",))]
    return Toy(graph, manifest("voice", spec, outputs, [state("h", 1)], **fields), lambda x: {})


def recording(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """Samples as int16: quiet, with two loud stretches."""
    rng = np.random.default_rng(seed)
    x = 0.002 * rng.standard_normal(round(seconds * RATE))
    for start, stop in ((0.2, 0.45), (0.7, 0.93)):
        part = slice(round(start * len(x)), round(stop * len(x)))
        x[part] += 0.2 * rng.standard_normal(x[part].size)
    return np.clip(x * 32768, -32768, 32767).astype("<i2")
