"""The watch recordings: where they are, what is in them, and the windows that are scored.

Letters: T samples at 50 Hz, 6 axes (three of acceleration in g, three of rotation in rad/s), W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CACHE = Path.home() / ".cache" / "streamssm" / "wrist"
FILE = "watch_dataset.npy"
RATE = 50  # samples per second
AXES = ("ax", "ay", "az", "wx", "wy", "wz")
LABELS = ("pendulum", "abduction", "forward_elevation", "internal_rotation", "external_rotation")
LABELS += ("trapezius_extension", "upright_row")
SUBJECTS = tuple(range(1, 11))
SECONDS = (1, 2, 4, 8)  # after which a window is scored
STEP = RATE  # samples between the starts of windows
_CODES = ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"]  # the data set's own, in the order of LABELS


class DataError(ValueError):
    """The recordings are not there or not as expected; the message says what to do."""


@dataclass(frozen=True)
class Series:
    """One exercise by one arm of one person: about twenty repetitions."""

    x: np.ndarray  # [T, 6] float32
    label: int  # place in LABELS
    subject: int  # 1 to 10
    side: int  # 0 or 1: which arm


def load(cache: Path = CACHE) -> list[Series]:
    """All 140 series, in the order of the file.

    Raises:
        DataError: the file is missing, or is another one.
    """
    path = cache / FILE
    if not path.exists():
        raise DataError(f"{path} is not there: run `python examples/timeseries/fetch.py`")
    stored = np.load(path, allow_pickle=True).item()
    if list(stored["y_labels"]) != _CODES or list(stored["X_labels"]) != list(AXES):
        raise DataError(f"{path} has labels {stored['y_labels']}, not {_CODES}: run fetch.py again")
    columns = zip(stored["X"], stored["y"], stored["subject"], stored["side"], strict=True)
    return [Series(np.ascontiguousarray(x, np.float32), int(y), int(s), int(a)) for x, y, s, a in columns]


def without(series: list[Series], held_out: tuple[int, ...]) -> list[Series]:
    """The series of everybody else."""
    return [one for one in series if one.subject not in held_out]


def of(series: list[Series], subjects: tuple[int, ...]) -> list[Series]:
    """The series of these people."""
    return [one for one in series if one.subject in subjects]


def windows(series: list[Series], length: int, step: int = STEP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows [W, length, 6] that start every ``step`` samples, their labels [W], and the number [W] of the
    series that each is from."""
    cut = [np.lib.stride_tricks.sliding_window_view(one.x, length, 0)[::step] for one in series]
    number = np.repeat(np.arange(len(series)), [len(part) for part in cut])
    labels = np.array([one.label for one in series], np.int64)[number]
    return np.ascontiguousarray(np.concatenate(cut).transpose(0, 2, 1)), labels, number
