"""Other voice activity detectors, each as one function: samples at 16 kHz -> one score a frame.

All stream through the whole signal with the state they keep. A detector whose block is longer
than a frame gives a frame the score of the block in which that frame ends, which lets it see up
to a block ahead. Scores are never shifted in time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dataset import HOP, RATE

Scorer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A detector from PyPI: its name in the table, what to import, how to install it."""

    name: str
    module: str
    install: str
    score: Scorer

    def installed(self) -> bool:
        """Whether its package is here."""
        return importlib.util.find_spec(self.module) is not None

    def version(self) -> str:
        """Distribution and version, such as "earshot-1.2.2"."""
        distribution = self.install.split()[-1]
        return f"{distribution}-{importlib.metadata.version(distribution)}"


def _spread(block_scores: list[float], block: int, frames: int) -> np.ndarray:
    """Scores of whole blocks as scores of frames; the last block also serves what is left over."""
    last_sample = np.arange(1, frames + 1) * HOP - 1
    return np.asarray(block_scores)[np.minimum(last_sample // block, len(block_scores) - 1)]


def _blocks(x: np.ndarray, size: int) -> np.ndarray:
    return x[: len(x) // size * size].reshape(-1, size)


def _pcm(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x * 32767.0), -32768, 32767).astype(np.int16)


def silero(x: np.ndarray) -> np.ndarray:
    """The ONNX file inside the wheel: blocks of 512 samples with 64 samples of context."""
    import onnxruntime

    package = Path(importlib.util.find_spec("silero_vad").origin).parent
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = package / "data" / "silero_vad.onnx"
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    state, past = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    scores, rate = [], np.array(RATE, np.int64)
    for block in _blocks(x.astype(np.float32), 512):
        feed = {"input": np.concatenate([past, block])[None], "state": state, "sr": rate}
        probability, state = session.run(None, feed)
        scores.append(float(probability[0, 0]))
        past = block[-64:]
    return _spread(scores, 512, len(x) // HOP)


def rnnoise(x: np.ndarray) -> np.ndarray:
    """The speech probability of the noise suppressor, 10 ms blocks at 48 kHz."""
    import soxr
    from pyrnnoise.rnnoise import create, destroy, process_mono_frame

    wide = _pcm(soxr.resample(x, RATE, 48_000))
    handle = create()
    scores = [float(process_mono_frame(handle, block)[1]) for block in _blocks(wide, 480)]
    destroy(handle)
    return np.asarray(scores[: len(x) // HOP])


def webrtc(x: np.ndarray) -> np.ndarray:
    """The sum of the yes/no answers of its four modes, 10 ms blocks."""
    import webrtcvad

    detectors = [webrtcvad.Vad(mode) for mode in range(4)]
    pcm = [block.tobytes() for block in _blocks(_pcm(x), HOP)]
    return np.asarray([sum(d.is_speech(p, RATE) for d in detectors) for p in pcm], np.float64)


def earshot(x: np.ndarray) -> np.ndarray:
    """Blocks of 256 samples."""
    from earshot import Detector

    detector = Detector()
    blocks = _blocks(np.clip(x, -1, 1).astype(np.float32), 256)
    return _spread([detector.predict_f32(b) for b in blocks], 256, len(x) // HOP)


def pymicro_vad(x: np.ndarray) -> np.ndarray:
    """10 ms blocks; its answer before it has heard enough is negative."""
    from pymicro_vad import MicroVad

    detector = MicroVad()
    return np.asarray([detector.process_10ms(b.tobytes()) for b in _blocks(_pcm(x), HOP)])


PEERS = (
    Peer("Silero v6", "silero_vad", "--no-deps silero-vad", silero),
    Peer("RNNoise", "pyrnnoise", "pyrnnoise", rnnoise),
    Peer("earshot", "earshot", "earshot", earshot),
    Peer("pymicro-vad", "pymicro_vad", "pymicro-vad", pymicro_vad),
    Peer("WebRTC, 4 modes", "webrtcvad", "webrtcvad-wheels", webrtc),
)
