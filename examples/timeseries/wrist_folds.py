"""What the networks of the folds say of the people whom they have not seen, window by window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from wrist_data import RATE, SECONDS, STEP, SUBJECTS, DataError, Series, of
from wrist_model import Sequential, ensemble, load
from wrist_scores import macro_f1

NETWORKS = Path(__file__).resolve().parent / "networks"
BATCH = 64  # windows that are scored at a time
#: probabilities [W, T, 7] of windows [W, T, 6], each from a fresh state
Model = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Answers:
    """Probabilities of every window of everybody, by the model that has not seen its person."""

    windows: np.ndarray  # [W, 400, 7], NaN after the end of a series
    label: np.ndarray  # [W]
    person: np.ndarray  # [W]
    series: np.ndarray  # [W], the place of the window's series
    whole: list[np.ndarray]  # of each series [T, 7], from its first sample to its last

    def after(self, samples: int) -> np.ndarray:
        """Which windows [W] have an answer after so many samples."""
        return ~np.isnan(self.windows[:, samples - 1, 0])


def networks(folder: Path = NETWORKS) -> dict[str, list[Sequential]]:
    """The networks of every fold ("1" to "10", and "all") from all files of a folder.

    Raises:
        DataError: there are none.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError(f"{folder} holds no networks: run `python examples/timeseries/train.py`")
    found: dict[str, list[Sequential]] = {}
    for path in files:
        for name, network in load(path)[0].items():
            found.setdefault(name.rsplit("/", 1)[-1], []).append(network)
    return found


def fold_models(found: Mapping[str, Sequence[Sequential]]) -> dict[int, Model]:
    """Each person's model: the ensemble of the networks that were trained without this person.

    Raises:
        DataError: a fold is missing.
    """
    return {person: _torch_model(ensemble(of_fold(found, str(person)))) for person in SUBJECTS}


def of_fold(found: Mapping[str, Sequence[Sequential]], fold: str) -> Sequence[Sequential]:
    """The networks of a fold: "1" to "10", or "all".

    Raises:
        DataError: there are none.
    """
    if fold not in found:
        raise DataError(f"no network of fold {fold}; there are those of {', '.join(found)}")
    return found[fold]


def _torch_model(network: Sequential) -> Model:
    @torch.inference_mode()
    def run(x: np.ndarray) -> np.ndarray:
        parts = [torch.from_numpy(x[at : at + BATCH]) for at in range(0, len(x), BATCH)]
        return torch.cat([network(part)[0].softmax(-1) for part in parts]).numpy()

    return run


def starts(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What follows every start of a window, at most eight seconds of it: samples [W, 400, 6] padded with
    zeros, how many there are [W], and the places [W] of their series. From one second on a start counts."""
    longest = max(SECONDS) * RATE
    cut = [(n, at) for n, one in enumerate(series) for at in range(0, len(one.x) - RATE + 1, STEP)]
    lengths = np.array([min(longest, len(series[n].x) - at) for n, at in cut])
    x = np.zeros((len(cut), longest, 6), np.float32)
    for row, (n, at), length in zip(x, cut, lengths, strict=True):
        row[:length] = series[n].x[at : at + length]
    return x, lengths, np.array([n for n, _ in cut])


def ask(series: Sequence[Series], models: Mapping[int, Model], say: Callable[[str], None] = print) -> Answers:
    """Ask each model of ``models`` about its person."""
    windows, labels, people, places = [], [], [], []
    whole: list[np.ndarray] = [np.zeros((0, 7))] * len(series)
    for person, model in models.items():
        mine = [n for n, one in enumerate(series) if one.subject == person]
        x, lengths, place = starts(of(list(series), (person,)))
        found = model(x)
        found[np.arange(x.shape[1]) >= lengths[:, None]] = np.nan
        windows.append(found)
        places.append(np.array(mine)[place])
        labels.append(np.array([series[n].label for n in mine])[place])
        people.append(np.full(len(x), person))
        for n in mine:
            whole[n] = model(series[n].x[None])[0]
        say(f"subject {person}: {len(x)} windows")
    joined = (np.concatenate(parts) for parts in (windows, labels, people, places))
    return Answers(*joined, whole)


def scores(answers: Answers, series: Sequence[Series]) -> dict[str, float]:
    """Macro-F1 after each number of seconds, of whole series, and at every sample of them."""
    found = {}
    for seconds in SECONDS:
        there = answers.after(seconds * RATE)
        chosen = answers.windows[there, seconds * RATE - 1].argmax(-1)
        found[f"{seconds} s"] = macro_f1(answers.label[there], chosen)
    labels = np.array([one.label for one in series])
    found["whole"] = macro_f1(labels, np.array([p.mean(0).argmax() for p in answers.whole]))
    each = np.repeat(labels, [len(p) for p in answers.whole])
    found["every"] = macro_f1(each, np.concatenate([p.argmax(-1) for p in answers.whole]))
    return {name: round(score, 4) for name, score in found.items()}
