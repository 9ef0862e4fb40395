"""Train the voice activity network on endless mixtures; CPU or CUDA, seeded, resumable.

    python examples/audio/train.py --config examples/audio/train.toml --out runs/vad

`OUT/last.pt` is where to resume from, `OUT/best.pt` the best weights by validation ROC-AUC.
Rows keep their recurrent state from one batch to the next with some probability, so that the
network also learns what long streams look like.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from dataset import DataError, Pool
from fetch import DEFAULT_CACHE
from mixing import MixConfig, Mixer
from model import ModelConfig, build, parameters, save
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from streamssm.atomic import replacing
from streamssm.export.metrics import roc_auc

VALID_ROWS, VALID_SEED = 64, 20_240


@dataclass(frozen=True)
class TrainConfig:
    """How long and how hard to train."""

    steps: int = 12_000
    batch: int = 96
    lr: float = 3e-3
    lr_last: float = 1e-5
    warmup: int = 300
    weight_decay: float = 0.02
    clip: float = 1.0
    average: float = 0.998  # of the weights that are validated and kept
    p_carry: float = 0.6  # chance that a row goes on from its last state
    valid_every: int = 500
    seed: int = 1


class Trainer:
    """Everything that a training run remembers."""

    def __init__(self, model: ModelConfig, train: TrainConfig, mix: MixConfig, args):
        self.model_config, self.train_config, self.out = model, train, args.out
        self.device = torch.device(args.device)
        torch.manual_seed(train.seed)
        if args.fast_scan:
            import fast_scan

            fast_scan.install()
        self.network = build(model).to(self.device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimiser = _optimiser(self.network, train)
        self.mixer = _mixer(args.cache, "train", mix, self.device, train.seed)
        self.valid = _valid_set(args.cache, mix, self.device)
        self.state = self.network.init_state(train.batch, self.device)
        self.step, self.best, self.losses = 0, 0.0, []

    def run(self) -> None:
        """Train to the end, validating and saving on the way."""
        began, first = time.monotonic(), self.step
        with _progress() as bar:
            task = bar.add_task("training", total=self.train_config.steps, completed=self.step)
            while self.step < self.train_config.steps:
                self.losses.append(self.one_step())
                bar.update(task, completed=self.step)
                if self.step % self.train_config.valid_every == 0:
                    self.validate(began, first)

    def one_step(self) -> Tensor:
        """One update from one fresh batch; returns the loss without waiting for the device."""
        c = self.train_config
        sound, labels = self.mixer.batch(c.batch)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(c, self.step)
        logits, state = self.network(sound, self._carried())
        loss = binary_cross_entropy_with_logits(logits[..., 0], labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), c.clip)
        self.optimiser.step()
        self.state = {k: v.detach() for k, v in state.items()}
        self._average()
        self.step += 1
        return loss.detach()

    def _carried(self) -> dict[str, Tensor]:
        keep = self.mixer.coin(self.train_config.p_carry, self.train_config.batch)
        return {k: v * keep.to(v.dtype).view(-1, *[1] * (v.ndim - 1)) for k, v in self.state.items()}

    @torch.no_grad()
    def _average(self) -> None:
        weight = 1 - min(self.train_config.average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now, weight)

    @torch.no_grad()
    def validate(self, began: float, first: int) -> None:
        """Score the averaged weights on the fixed validation mixtures and save."""
        scores = [self.averaged(sound, None)[0][..., 0].cpu() for sound, _ in self.valid]
        labels = [labels.cpu() for _, labels in self.valid]
        auc = roc_auc(torch.cat(scores).numpy(), torch.cat(labels).numpy())
        loss = float(torch.stack(self.losses).mean())
        rate = (self.step - first) / (time.monotonic() - began)
        self.losses = []
        _report(self.out, step=self.step, loss=loss, valid_auc=auc, steps_per_s=rate)
        if auc > self.best:
            self.best = auc
            self.save_best(auc)
        self.save_last()

    def save_best(self, auc: float) -> None:
        """Keep these averaged weights as the best so far."""
        notes = {"step": self.step, "valid_auc": auc, "train": asdict(self.train_config)}
        notes["mix"] = asdict(self.mixer.config)
        save(self.out / "best.pt", self.averaged, self.model_config, **notes)

    def save_last(self) -> None:
        """Write all that `resume` needs."""
        everything = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "mixer": self.mixer.state(),
            "state": self.state,
            "step": self.step,
            "best": self.best,
        }
        with replacing(self.out / "last.pt") as scratch:
            torch.save(everything, scratch)

    def resume(self) -> None:
        """Go on from `last.pt`, if there is one."""
        path = self.out / "last.pt"
        if not path.exists():
            return
        stored = torch.load(path, map_location=self.device, weights_only=True)
        for part in ("network", "averaged", "optimiser"):
            getattr(self, part).load_state_dict(stored[part])
        self.mixer.restore(stored["mixer"])
        self.state, self.step, self.best = stored["state"], stored["step"], stored["best"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to `lr_last`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr_last + (config.lr - config.lr_last) * 0.5 * (1 + math.cos(math.pi * done))


def _optimiser(network: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, and not on the state matrix of a Mamba layer."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if p.ndim > 1 and "A_log" not in n]
    others = [p for n, p in named if p.ndim <= 1 or "A_log" in n]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


def _mixer(cache: Path, split: str, mix: MixConfig, device: torch.device, seed: int) -> Mixer:
    speech, noise = (Pool.load(cache / f"{split}-{name}.npz") for name in ("speech", "noise"))
    return Mixer(speech, noise, mix, device, seed)


def _valid_set(cache: Path, mix: MixConfig, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    config = MixConfig(frames=mix.frames, snr_db=(0.0, 20.0), p_no_noise=0.0)
    mixer = _mixer(cache, "valid", config, device, VALID_SEED)
    return [mixer.batch(16) for _ in range(VALID_ROWS // 16)]


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"))
    return Progress(*columns, TimeRemainingColumn(), disable=not sys.stderr.isatty())


def _report(out: Path, **row: float) -> None:
    line = json.dumps({k: round(v, 5) for k, v in row.items()})
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def read_config(path: Path | None) -> tuple[ModelConfig, TrainConfig, MixConfig]:
    """The three tables of a TOML file; whatever it leaves out keeps its default."""
    tables = tomllib.loads(path.read_text()) if path else {}
    kinds = {"model": ModelConfig, "train": TrainConfig, "mix": MixConfig}
    if unknown := set(tables) - set(kinds):
        raise DataError(f"{path}: unknown table {sorted(unknown)}: use {sorted(kinds)}")
    try:
        return tuple(kind(**_tuples(tables.get(name, {}))) for name, kind in kinds.items())
    except TypeError as error:
        raise DataError(f"{path}: {error}") from None


def _tuples(table: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}


def main() -> int:
    """Entry point."""
    args = _arguments()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(*read_config(args.config), args)
        trainer.resume()
        print(f"{parameters(trainer.network)} parameters on {args.device}, from step {trainer.step}")
        trainer.run()
    except (DataError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, default=Path("runs/vad"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fast-scan", action="store_true", help="fused scan (CUDA, Triton)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
