"""A file for every utterance: listens to a microphone, and saves what was said.

    python examples/audio/mic_vad.py                          # until Ctrl-C, into ./utterances
    python examples/audio/mic_vad.py meeting.flac --out parts # anything that `streamssm run` reads

Needs ``pip install 'streamssm[audio,live]'``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import wave
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import streamssm
from streamssm.errors import StreamSSMError
from streamssm.sources import Request, Source, open_source
from streamssm.sources.base import Array

PAD = 0.3  # seconds kept before and after
LONGEST = 60.0  # seconds; of a longer utterance the end is kept


class Recorder(Source):
    """A source that remembers the last samples it gave."""

    def __init__(self, source: Source, keep: int):
        self._source, self._keep = source, keep
        self._chunks: deque[Array] = deque()
        self._held = self.given = 0
        self.name, self.total, self.notes = source.name, source.total, source.notes

    def read(self, count: int) -> Array:
        """The next samples."""
        samples = self._source.read(count)
        for name in ("due", "record", "more", "gaps"):
            setattr(self, name, getattr(self._source, name))
        self._chunks.append(samples)
        self._held += len(samples)
        self.given += len(samples)
        while self._held - len(self._chunks[0]) >= self._keep:
            self._held -= len(self._chunks.popleft())
        return samples

    def between(self, start: int, stop: int) -> Array:
        """Samples number ``start`` to ``stop``, as far as they are remembered."""
        first = self.given - self._held
        kept = np.concatenate(list(self._chunks))
        return kept[max(0, start - first) : max(0, stop - first)]

    def close(self) -> None:
        """Close the source."""
        self._source.close()


@dataclass(frozen=True)
class Utterance:
    """Somebody spoke, from ``start`` seconds on."""

    start: float
    samples: Array


def utterances(model: streamssm.Model, uri: str, pad: float = PAD) -> Iterator[Utterance]:
    """What is said on a source, as soon as each utterance has ended; Ctrl-C ends the last one."""
    rate = float(model.manifest.input.rate or 1)
    recorder = Recorder(open_source(uri, Request(model.manifest.input)), round((LONGEST + 2 * pad) * rate))
    # lost samples are not made up for: what is cut out must be where the event says
    with model.run(recorder, emit="events", on_gap="skip") as rows:
        before = signal.signal(signal.SIGINT, lambda *_: rows.stop())
        try:
            start = 0.0
            for row in rows:
                if row.get("event") == "start":
                    start = row["time"]
                elif row.get("event") == "end":
                    first = max(0.0, start - pad)
                    samples = recorder.between(round(first * rate), round((row["time"] + pad) * rate))
                    yield Utterance(first, samples)
        finally:
            signal.signal(signal.SIGINT, before)


def save(path: Path, samples: Array, rate: int) -> None:
    """Write 16-bit samples."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def main() -> int:
    """Save utterance after utterance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "source", nargs="?", default="mic", help="mic, mic:NAME, or any source of streamssm run"
    )
    parser.add_argument("--out", type=Path, default=Path("utterances"))
    parser.add_argument("--model", default="vad")
    options = parser.parse_args()
    try:
        model = streamssm.load(options.model)
        options.out.mkdir(parents=True, exist_ok=True)
        for number, found in enumerate(utterances(model, options.source), 1):
            path = options.out / f"{number:04d}-{found.start:.2f}s.wav"
            rate = round(model.manifest.input.rate or 1)
            save(path, found.samples, rate)
            print(f"{path}  {len(found.samples) / rate:.2f} s", flush=True)
    except StreamSSMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
