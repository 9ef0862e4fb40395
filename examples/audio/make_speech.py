"""Make `speech.wav`, the short recording of the README: four sentences with real pauses.

    python examples/audio/make_speech.py

The sentences come from a TEST source (see ATTRIBUTION.md); quiet synthetic room noise is added.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile as sf
from dataset import RATE, decode
from fetch import DEFAULT_CACHE

FOLDER = "asterisk-core-sounds-ru-g722/usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU"
SENTENCES = ("hello-world", "auth-incorrect", "conf-getconfno", "goodbye")
PAUSES = (0.5, 0.8, 0.8, 0.8, 0.6)  # before, between and after, in seconds
NOISE_DBFS = -52.0


def compose(cache: Path) -> np.ndarray:
    """The sentences at one level, in noise that falls by 3 dB an octave."""
    parts = [np.zeros(round(PAUSES[0] * RATE))]
    for name, pause in zip(SENTENCES, PAUSES[1:], strict=True):
        x = decode(cache / FOLDER / f"{name}.g722")
        parts += [x * 0.5 / np.abs(x).max(), np.zeros(round(pause * RATE))]
    speech = np.concatenate(parts)
    return speech + _pink(len(speech)) * 10 ** (NOISE_DBFS / 20)


def _pink(samples: int) -> np.ndarray:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 50.0)), n=samples)
    return noise / np.sqrt(np.mean(noise**2))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "speech.wav")
    args = parser.parse_args()
    sf.write(args.out, compose(args.cache), RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
