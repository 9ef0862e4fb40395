"""Train the exercise networks side by side; CPU or CUDA, seeded, resumable.

    python examples/timeseries/train.py --out runs/wrist                 ten folds and the shipped model
    python examples/timeseries/train.py --plan 3 --out runs/fold3        the fold of one person alone
    python examples/timeseries/train.py --plan inner --out runs/inner    what hyper-parameters are chosen by

`OUT/last.pt` is where to resume from, `OUT/weights.pt` what came out: averaged weights of every network,
in `OUT/networks/` as small files; `OUT/answers.npz` is what they say of people whom they have not seen.
`inner` leaves out two people at a time. With `--seconds` the schedule ends by the clock, whatever was
reached.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wrist_batches import AugmentConfig
from wrist_data import CACHE, SUBJECTS, DataError, load
from wrist_model import ModelConfig
from wrist_training import Member, TrainConfig, Training, save, split, validate

from streamssm.atomic import replacing

HERE = Path(__file__).resolve().parent
SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Recipe:
    """What the configuration file says."""

    model: ModelConfig
    train: TrainConfig
    augment: AugmentConfig
    candidates: dict[str, dict[str, float]]


def read_recipe(path: Path) -> Recipe:
    """The tables of a TOML file; whatever it leaves out keeps its default.

    Raises:
        DataError: no TOML, or an unknown table or setting.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: {error}") from None
    kinds = {"model": ModelConfig, "train": TrainConfig, "augment": AugmentConfig}
    if unknown := set(tables) - {*kinds, "candidates"}:
        raise DataError(f"{path}: unknown table {sorted(unknown)}: use {sorted([*kinds, 'candidates'])}")
    try:
        settings = {name: kind(**_tuples(tables.get(name, {}))) for name, kind in kinds.items()}
        candidates = tables.get("candidates", {})
        for changes in candidates.values():
            AugmentConfig(**changes)
    except TypeError as error:
        raise DataError(f"{path}: {error}") from None
    return Recipe(**settings, candidates=candidates)


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}


def members_of(plan: str, seeds: int, recipe: Recipe) -> list[Member]:
    """The networks of a plan, for each candidate (if there are any).

    Raises:
        DataError: no such plan.
    """
    pairs = [Member(f"inner/{one}", (one, one % len(SUBJECTS) + 1)) for one in SUBJECTS]
    folds = [Member(f"fold/{one}", (one,)) for one in SUBJECTS]
    final = [Member("all")]
    plans = {"inner": pairs, "folds": folds, "final": final, "all": folds + final}
    plans |= {"everything": pairs + folds + final} | {str(m.held_out[0]): [m] for m in folds}
    if plan not in plans:
        raise DataError(f"--plan {plan}: use one of {', '.join(plans)}")
    return [
        Member(f"{name}/{seed}/{member.name}", member.held_out, seed, changes)
        for name, changes in (recipe.candidates or {"recipe": {}}).items()
        for seed in range(seeds)
        for member in plans[plan]
    ]


def run(training: Training, out: Path, seconds: float | None) -> None:
    """Train to the end of the steps or of the time, saving on the way."""
    began, saved = time.monotonic() - training.spent, time.monotonic()
    losses: list[torch.Tensor] = []
    with _bar() as advance:
        while training.step < training.config.steps:
            training.spent = time.monotonic() - began
            progress = training.progress
            if seconds is not None:
                progress = max(progress, training.spent / seconds)
            if progress >= 1:
                break
            losses.append(training.one_step(progress))
            advance(progress)
            if training.step % 50 == 0:
                _report(out, training, progress, losses)
                losses = []
            if time.monotonic() - saved > SAVE_EVERY:
                save_all(training, out)
                saved = time.monotonic()
    training.spent = time.monotonic() - began
    save_all(training, out)


def save_all(training: Training, out: Path) -> None:
    """The result so far, and what resuming needs."""
    save(out / "weights.pt", training, {"seconds": round(training.spent, 1)})
    with replacing(out / "last.pt") as scratch:
        torch.save(training.state(), scratch)


def _report(out: Path, training: Training, progress: float, losses: list[torch.Tensor]) -> None:
    row: dict[str, Any] = {"step": training.step, "progress": round(progress, 4)}
    loss = torch.stack(losses).mean(0).cpu()
    row |= {"seconds": round(training.spent, 1), "loss": round(float(loss.mean()), 4)}
    row["steps_per_s"] = round(training.step / max(training.spent, 1e-9), 2)
    if training.device.type == "cuda":
        row["gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    _write(out, row)


def _write(out: Path, row: dict[str, Any]) -> None:
    line = json.dumps(row)
    if not sys.stderr.isatty():
        print(line, flush=True)
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def _bar() -> Any:
    """A progress bar on a terminal; elsewhere nothing. Yields a function of the progress."""
    if not sys.stderr.isatty():
        return nullcontext(lambda progress: None)
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        def __enter__(self) -> Any:
            super().__enter__()
            task = self.add_task("training", total=1.0)
            return lambda progress: self.update(task, completed=progress)

    return Bar(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())


def main() -> int:
    """Entry point."""
    args = _arguments()
    try:
        recipe, series = read_recipe(args.config), load(args.cache)
        args.out.mkdir(parents=True, exist_ok=True)
        members = members_of(args.plan, args.seeds, recipe)
        device = torch.device(args.device)
        torch.backends.cuda.matmul.allow_tf32 = True
        training = Training(series, members, recipe.model, recipe.train, recipe.augment, device)
        if (args.out / "last.pt").exists():
            stored = torch.load(args.out / "last.pt", map_location=device, weights_only=True)
            training.restore(stored)
        print(f"{len(members)} networks of {training.size} parameters on {device}, from step {training.step}")
        run(training, args.out, args.seconds)
        rows, answers = validate(training, series)
        for row in rows:
            _write(args.out, row)
        with replacing(args.out / "answers.npz") as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, **answers)
        split(args.out / "weights.pt", args.out / "networks")
    except (DataError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE / "train.toml")
    parser.add_argument("--plan", default="all", help="all, final, inner, or a person's number")
    parser.add_argument("--seeds", type=int, default=1, help="networks of each kind")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path("runs/wrist"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, help="end by then, with the schedule fitted to it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
