"""What several tests of the command line share."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
from voice_toy import RATE

PROGRAM = [sys.executable, "-c", "from streamssm.cli import main; main()"]


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path
