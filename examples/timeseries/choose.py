"""Which of the candidates each fold takes: by the scores of the other nine people.

    cd examples/timeseries
    python train.py --plan inner --config candidates/NAME.toml --out runs/NAME       for each of the four
    python choose.py runs/* --json results/inner.json

In an inner run two people are left out at a time, and both are scored. For the fold of a person that
candidate is taken which has the best macro-F1 after 2 s over the other nine people. Beside it stands the
choice by those runs alone in which this person took no part at all: the scores of two other people.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from wrist_data import CACHE, RATE, SECONDS, SUBJECTS, DataError, Series, load, of
from wrist_folds import starts
from wrist_scores import confusion, f1

#: (candidate, the pair that was left out, the person that is scored) -> confusion [label, chosen]
Tables = Mapping[tuple[str, int, int], np.ndarray]
SECOND = SECONDS.index(2)


def read(folders: list[Path], series: list[Series]) -> dict[tuple[str, int, int], np.ndarray]:
    """The confusions after 2 s of all inner runs.

    Raises:
        DataError: a folder holds no answers of inner runs.
    """
    tables = {}
    for folder in folders:
        if not (folder / "answers.npz").exists():
            raise DataError(f"{folder} holds no answers.npz: run train.py --plan inner --out {folder}")
        with np.load(folder / "answers.npz") as answers:
            for key in answers.files:
                candidate, _, plan, *rest = key.split("/")
                if plan == "inner":
                    person = int(rest[1].removeprefix("of"))
                    name = f"{folder.name}, {candidate}"
                    tables[name, int(rest[0]), person] = _table(series, person, answers[key][:, SECOND])
    if not tables:
        raise DataError("these runs left out no pairs: use train.py --plan inner")
    return tables


def _table(series: list[Series], person: int, logits: np.ndarray) -> np.ndarray:
    mine = of(series, (person,))
    _, lengths, place = starts(mine)
    there = lengths >= SECONDS[SECOND] * RATE
    labels = np.array([one.label for one in mine])[place][there]
    return confusion(labels, logits[there].argmax(-1), np.zeros(len(labels), int))[0]


def choices(tables: Tables) -> dict[str, dict[str, object]]:
    """For each person the candidate of the fold, by both rules, with its score."""
    names = sorted({name for name, _, _ in tables})
    found: dict[str, dict[str, object]] = {}
    for person in SUBJECTS:
        others = {n: _score(t for (c, _, p), t in tables.items() if c == n and p != person) for n in names}
        apart = {
            n: _score(
                t for (c, pair, p), t in tables.items() if c == n and person in left_out(pair) and p != person
            )
            for n in names
        }
        found[str(person)] = {
            "chosen": max(others, key=others.__getitem__),
            "scores": {name: round(score, 4) for name, score in others.items()},
            "chosen_apart": max(apart, key=apart.__getitem__),
        }
    return found


def left_out(pair: int) -> tuple[int, int]:
    """The two people of the pair that is named after its first."""
    return pair, pair % len(SUBJECTS) + 1


def _score(tables: object) -> float:
    return float(f1(sum(tables)))  # type: ignore[call-overload]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of train.py --plan inner")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args()
    try:
        tables = read(args.runs, load(args.cache))
    except (DataError, OSError) as error:
        print(f"choose: {error}", file=sys.stderr)
        return 1
    names = sorted({name for name, _, _ in tables})
    overall = {n: round(_score(t for (c, _, _), t in tables.items() if c == n), 4) for n in names}
    found = choices(tables)
    for name, score in sorted(overall.items(), key=lambda pair: -pair[1]):
        print(f"{name:24} {score:.4f}")
    for person, row in found.items():
        print(f"without {person:>2}: {row['chosen']}; by runs without this person: {row['chosen_apart']}")
    if args.json:
        args.json.write_text(json.dumps({"macro_f1_after_2_s": overall, "folds": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
