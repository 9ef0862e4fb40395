"""Decode recordings to 16 kHz mono, label speech frames by energy, and lay them out as pools.

A pool is all audio of one role as a single int16 array whose items start on 10 ms frames, beside
one label per frame and a table of items. Pools are what training mixes from (see `mixing.py`).

Frame t covers samples [160 t, 160 (t + 1)); its label says whether there is speech in it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from fetch import DEFAULT_CACHE
from rich.progress import track
from sources import SOURCES, audio_files

RATE = 16_000
HOP = 160  # samples in a frame
SPEECH_RANGE_DB = 35.0  # speech is what lies less than this under the loudest frame
NOISY_RANGE_DB = 18.0  # a file with less room than this between speech and floor is dropped
FLOOR_MARGIN_DB = 8.0  # in a noisy file, speech is at least this far above its floor
MAX_SECONDS = {"train": 110, "valid": 110, "far": 60, "test": 240}  # of one file
TELEPHONE = {".g722": 16_000, ".gsm": 8_000}  # sample rates
VALID_SHARE = 20  # one file in this many is for validation


class DataError(RuntimeError):
    """Recordings are missing or unusable; the message says which and what to do."""


@dataclass(frozen=True)
class Pool:
    """All audio of one role: samples, labels and a table of the items they belong to."""

    audio: np.ndarray  # int16 [frames * HOP]
    labels: np.ndarray  # uint8 [frames], 1 = speech (all 0 in noise pools)
    start: np.ndarray  # int64 [items], first frame of each item
    length: np.ndarray  # int64 [items], frames
    level: np.ndarray  # float32 [items], dBFS of the active part
    group: np.ndarray  # int16 [items], index into `groups`
    groups: list[str]

    def save(self, path: Path) -> None:
        """Write everything to one `.npz`."""
        fields = {k: v for k, v in vars(self).items() if k != "groups"}
        np.savez(path, **fields, groups=np.array(self.groups))

    @classmethod
    def load(cls, path: Path) -> Pool:
        """Read what `save` wrote."""
        if not path.exists():
            raise DataError(f"no pool at {path}: run `python examples/audio/dataset.py` first")
        with np.load(path) as file:
            fields = {k: file[k] for k in file.files}
        return cls(**{**fields, "groups": fields["groups"].tolist()})


def decode(path: Path, seconds: float | None = None) -> np.ndarray:
    """Any recording, or its first seconds, as float32 mono at 16 kHz."""
    x, rate = _decode_telephone(path) if path.suffix in TELEPHONE else _decode_file(path, seconds)
    x = x.mean(axis=1) if x.ndim == 2 else x
    x = soxr.resample(x, rate, RATE).astype(np.float32) if rate != RATE else x
    return x if seconds is None else x[: round(seconds * RATE)]


def _decode_file(path: Path, seconds: float | None) -> tuple[np.ndarray, int]:
    with sf.SoundFile(path) as file:
        frames = -1 if seconds is None else round(seconds * file.samplerate)
        return file.read(frames, dtype="float32"), file.samplerate


def _decode_telephone(path: Path) -> tuple[np.ndarray, int]:
    """Codecs without a header: the suffix names them."""
    import av

    with av.open(str(path), format=path.suffix[1:]) as container:
        frames = list(container.decode(audio=0))
    whole = np.concatenate([np.zeros(0, np.int16), *(f.to_ndarray().reshape(-1) for f in frames)])
    return whole.astype(np.float32) / 32768.0, TELEPHONE[path.suffix]


def frame_levels(x: np.ndarray) -> np.ndarray:
    """dBFS of each whole 10 ms frame."""
    frames = x[: len(x) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
    return 10.0 * np.log10(np.mean(frames**2, axis=1) + 1e-10)


def speech_labels(x: np.ndarray) -> np.ndarray | None:
    """One 0/1 label a frame from clean speech, or None if the file is too noisy to say.

    Speech is within 35 dB of the loudest frame (and clear of the file's own floor), smoothed by a
    median of 7 frames and widened by 50 ms on both sides.
    """
    if len(x) < 10 * HOP:
        return None
    level = frame_levels(x - x.mean())
    top, floor = level.max(), np.percentile(level, 5)
    threshold = top - SPEECH_RANGE_DB
    if floor + FLOOR_MARGIN_DB > threshold:
        if top - floor < NOISY_RANGE_DB:
            return None
        threshold = min(floor + FLOOR_MARGIN_DB, top - NOISY_RANGE_DB / 2)
    return _widen(_median(level > threshold, 7), 5).astype(np.uint8)


def _median(flags: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(flags, np.ones(width), "same") > width / 2


def _widen(flags: np.ndarray, frames: int) -> np.ndarray:
    return np.convolve(flags, np.ones(2 * frames + 1), "same") > 0.5


def recordings(cache: Path, split: str, role: str) -> list[tuple[str, Path]]:
    """(package, file) of one role in one split ("train", "valid", "far" or "test")."""
    stored = split if split in ("far", "test") else "train"
    found = [(s.package, f) for s in SOURCES for f in audio_files(cache, s, stored, role)]
    if not found:
        raise DataError(f"no {stored} {role} files in {cache}: run examples/audio/fetch.py first")
    return [(p, f) for p, f in found if stored != "train" or (split == "valid") == _is_valid(f)]


def _is_valid(path: Path) -> bool:
    return hashlib.sha256(path.name.encode()).digest()[0] % VALID_SHARE == 0


def build_pool(cache: Path, split: str, roles: tuple[str, ...]) -> Pool:
    """Decode and label every recording of a split that plays one of these roles."""
    files = [(f"{p}:{r}", f) for r in roles for p, f in recordings(cache, split, r)]
    groups = sorted({g for g, _ in files})
    items = list(_items(files, split, speech="speech" in roles))
    lengths = np.array([len(labels) for _, _, labels in items])
    return Pool(
        audio=np.concatenate([x for _, x, _ in items]),
        labels=np.concatenate([labels for _, _, labels in items]),
        start=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        length=lengths,
        level=np.array([_active_level(x, labels) for _, x, labels in items], np.float32),
        group=np.array([groups.index(g) for g, _, _ in items], np.int16),
        groups=groups,
    )


def _items(
    files: list[tuple[str, Path]], split: str, speech: bool
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    title = f"{split} {'speech' if speech else 'noise'}"
    for group, path in track(files, title, transient=True, disable=not sys.stderr.isatty()):
        try:
            x = decode(path, MAX_SECONDS[split])
        except sf.LibsndfileError:
            continue
        frames = len(x) // HOP
        if frames < 10 or np.abs(x).max() < 1e-3:
            continue
        labels = speech_labels(x) if speech else np.zeros(frames, np.uint8)
        if labels is not None:
            yield group, _to_int16(x[: frames * HOP]), labels


def _to_int16(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x * 32767.0), -32768, 32767).astype(np.int16)


def _active_level(x: np.ndarray, labels: np.ndarray) -> float:
    """dBFS of the speech frames of an item, or of its louder half where none are marked."""
    level = frame_levels(x.astype(np.float32) / 32768.0)
    active = level[labels > 0] if labels.any() else level[level >= np.median(level)]
    return float(10.0 * np.log10(np.mean(10.0 ** (active / 10.0))))


def main() -> int:
    """Build the pools of training and validation in the cache folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    try:
        _build_all(parser.parse_args().cache)
    except DataError as error:
        print(f"dataset: {error}", file=sys.stderr)
        return 1
    return 0


def _build_all(cache: Path) -> None:
    for split in ("train", "valid", "far"):
        for name, roles in (("speech", ("speech",)), ("noise", ("noise", "music"))):
            pool = build_pool(cache, split, roles)
            pool.save(cache / f"{split}-{name}.npz")
            print(_describe(split, name, pool))


def _describe(split: str, name: str, pool: Pool) -> str:
    lines = [f"{split} {name}: {pool.length.sum() / 6000:.1f} min, {len(pool.start)} items"]
    for i, group in enumerate(pool.groups):
        mine = pool.group == i
        minutes = pool.length[mine].sum() / 6000
        lines.append(f"  {group:<42} {minutes:7.1f} min {mine.sum():5d} items")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
