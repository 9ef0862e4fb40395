"""The training of the host network: configuration, the loop, validation, and what it takes to resume."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from genomes import RECODED, DataError, Genomes
from host_model import HOP, ModelConfig, build, save, stored_in
from reads import ErrorConfig, Reads
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from streamssm.atomic import replacing
from streamssm.export.metrics import roc_auc

SAVE_EVERY = 20  # seconds
VALID_SEED, VALID_ERRORS = 20_240, ErrorConfig(rate=(0.10, 0.14), p_clean=0.0, p_rough=0.0)


@dataclass(frozen=True)
class TrainConfig:
    """How long and how hard to train."""

    steps: int = 12_000
    batch: int = 1024
    length: int = 400  # bases of a read
    long_every: int = 10  # one batch in so many has reads of twice the length, and a quarter of them
    short_every: int = 0  # one batch in so many has twice as many reads of half the length
    lr: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.05
    muon: bool = False  # for the projections of the blocks
    clip: float = 1.0
    average: float = 0.998  # of the weights that are validated and kept
    valid_every: int = 1000
    valid_reads: int = 4096  # of each group
    early: tuple[float, ...] = (1.0, 1.0, 0.5, 0.5)  # weight of the first answers; 0.25 after them
    seed: int = 1
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "klebsiella": 0.15,
            "klebsiella~": 0.17,
            "vibrio": 0.13,
            "vibrio~": 0.15,
            "tuberculosis": 0.05,
            "tuberculosis~": 0.07,
            "helicobacter": 0.07,
            "helicobacter~": 0.09,
            "knowlesi": 0.10,
            "noise": 0.02,
        }
    )


class Trainer:
    """Everything that a training run remembers."""

    def __init__(self, model: ModelConfig, train: TrainConfig, errors: ErrorConfig, args):
        self.model_config, self.train_config, self.errors, self.args = model, train, errors, args
        self.device = torch.device(args.device)
        torch.manual_seed(train.seed)
        torch.set_float32_matmul_precision("high")
        if args.fast:
            import fast_dual

            fast_dual.install()
        self.network = build(model).to(self.device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimisers = _optimisers(self.network, train, self.device)
        genomes = Genomes.load(args.data / "train.npz")
        self.reads = Reads(genomes, _weights(train, args.hold_out), errors, self.device, train.seed)
        self.valid = self._validation_reads(genomes)
        if args.compile:
            for block in _stack(self.network).layers:
                block.compile(dynamic=False)
        later = [0.25] * (2 * train.length // HOP - len(train.early))
        self.weights = torch.tensor([*train.early, *later], device=self.device)
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.before = 0  # steps behind the weights it began with

    def _validation_reads(self, genomes: Genomes) -> dict[str, Tensor]:
        """Reads of each validation group, and of the groups held out."""
        held = Genomes.load(self.args.data / "valid.npz")
        reads = _drawn(held, self.train_config, self.device)
        if self.args.hold_out:
            reads |= _drawn(
                genomes.only(["human", *self.args.hold_out]), self.train_config, self.device, False
            )
        return reads

    @property
    def done(self) -> float:
        """The share of the run that is behind us."""
        if self.args.seconds:
            return self.seconds / self.args.seconds
        return self.step / self.train_config.steps

    def run(self) -> None:
        """Train to the end, validating and saving on the way."""
        last = time.monotonic()
        saved = self.seconds
        with _progress() as show:
            while self.done < 1:
                self.losses.append(self.one_step())
                if self.step % 20 == 0 and self.device.type == "cuda":
                    torch.cuda.synchronize()
                now = time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                show(self.done)
                if self.step % self.train_config.valid_every == 0:
                    self.validate()
                    saved = self.seconds
                elif self.seconds - saved > SAVE_EVERY:
                    self.save()
                    saved = self.seconds
        if self.losses:
            self.validate()

    def one_step(self) -> Tensor:
        """One update from one fresh batch; returns the loss without waiting for the device."""
        c = self.train_config
        rows, length = self._shape()
        bases, labels = self.reads.batch(rows, length)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(c, self.step, self.done)
        self.network.train()
        # long reads are few: what is compiled is compiled for the others alone
        with (
            _autocast(self.device),
            torch.compiler.set_stance("force_eager" if length > c.length else "default"),
        ):
            logits = self.network(bases)[0][..., 0].float()
        weight = self.weights[: logits.shape[1]]
        target = labels[:, None].expand_as(logits)
        loss = binary_cross_entropy_with_logits(logits, target, (weight / weight.mean()).expand_as(logits))
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), c.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self._average()
        self.step += 1
        return loss.detach()

    def _shape(self) -> tuple[int, int]:
        """Reads of the next batch, and bases of a read."""
        c = self.train_config
        if c.long_every and self.step % c.long_every == c.long_every - 1:
            return c.batch // 4, 2 * c.length
        if c.short_every and self.step % c.short_every == 0:
            return 2 * c.batch, c.length // 2
        return c.batch, c.length

    @torch.no_grad()
    def _average(self) -> None:
        weight = 1 - min(self.train_config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_([*self.averaged.parameters()], [*self.network.parameters()], weight)

    @torch.no_grad()
    def scores(self, reads: Tensor) -> Tensor:
        """Logits [reads, answers] of the averaged weights."""
        with _autocast(self.device):
            return torch.cat([self.averaged(part)[0][..., 0].float() for part in reads.split(512)])

    def validate(self) -> None:
        """Score the averaged weights on the fixed validation reads and save."""
        logits = {group: self.scores(reads) for group, reads in self.valid.items()}
        human = logits.pop("human")
        row = {}
        for group, others in logits.items():
            for bases in (100, 200, 400):
                row[f"{group}_{bases}"] = _auc(human, others, bases)
            row[f"{group}_recall_100"] = _recall(human, others)
        for bases in (100, 200, 400):
            row[f"macro_{bases}"] = sum(_auc(human, o, bases) for o in logits.values()) / len(logits)
        loss = float(torch.stack(self.losses).mean()) if self.losses else math.nan
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        rate = self.step / max(self.seconds, 1e-9)
        self.losses = []
        _report(
            self.args.out,
            step=self.step,
            seconds=self.seconds,
            steps_per_s=rate,
            GiB=memory,
            loss=loss,
            **row,
        )
        self.save(row)

    def save(self, row: dict | None = None) -> None:
        """Write the averaged weights, and all that `resume` needs."""
        notes = {"step": self.before + self.step, "seconds": self.seconds, "valid": row or {}}
        notes |= {"train": asdict(self.train_config), "errors": asdict(self.errors)}
        save(self.args.out / "best.pt", self.averaged, self.model_config, **notes)
        everything = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "reads": self.reads.state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with replacing(self.args.out / "last.pt") as scratch:
            torch.save(everything, scratch)

    def begin_with(self, path: Path) -> None:
        """Take the weights of a checkpoint, and nothing else of it.

        Raises:
            DataError: it has other sizes, or is no checkpoint.
        """
        stored = stored_in(path, self.device)
        try:
            for network in (self.network, self.averaged):
                network.load_state_dict(stored["weights"])
            self.step, self.before = 0, stored["notes"].get("step", 0)
        except (RuntimeError, KeyError) as error:
            raise DataError(f"{path} is of another configuration than --config") from error

    def begin_again(self, genomes: Genomes, train: TrainConfig, args: argparse.Namespace) -> None:
        """Go on from the averaged weights with other genomes, another schedule and another `args.out`."""
        self.before += self.step
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.train_config, self.args = train, args
        self.network.load_state_dict(self.averaged.state_dict())
        self.optimisers = _optimisers(self.network, train, self.device)
        self.reads = Reads(genomes, _weights(train, args.hold_out), self.errors, self.device, train.seed)

    def resume(self) -> None:
        """Go on from `last.pt`, if there is one.

        Raises:
            DataError: it is of a run with other sizes or other optimisers.
        """
        path = self.args.out / "last.pt"
        if not path.exists():
            return
        stored = stored_in(path, self.device)
        try:
            for part in ("network", "averaged"):
                getattr(self, part).load_state_dict(stored[part])
            for optimiser, state in zip(self.optimisers, stored["optimisers"], strict=True):
                optimiser.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = f"{path} is of another configuration; name another --out, or delete it"
            raise DataError(reason) from error
        self.reads.restore(stored["reads"])
        self.step, self.seconds = stored["step"], stored["seconds"]


def learning_rate(config: TrainConfig, step: int, done: float) -> float:
    """Half a cosine down to nothing under a linear warm-up; `done` is the share of the run."""
    rise = min(1.0, (step + 1) / config.warmup)
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _auc(human: Tensor, others: Tensor, bases: int) -> float:
    column = bases // HOP - 1
    scores = torch.cat([human[:, column], others[:, column]]).cpu().numpy()
    return roc_auc(scores, [1] * len(human) + [0] * len(others))


def _recall(human: Tensor, others: Tensor) -> float:
    """The share of human reads above the score that 1 % of the others reach, after 100 bases."""
    bar = others[:, 0].sort(descending=True).values[len(others) // 100]
    return float((human[:, 0] > bar).float().mean())


def _drawn(genomes: Genomes, c: TrainConfig, device: torch.device, human: bool = True) -> dict[str, Tensor]:
    reads = Reads(genomes, dict.fromkeys(genomes.groups, 1.0), VALID_ERRORS, device, VALID_SEED)
    wanted = [g for g in reads.groups if human or g != "human"]
    return {group: reads.batch(c.valid_reads, c.length, group)[0] for group in wanted}


def _weights(c: TrainConfig, hold_out: list[str]) -> dict[str, float]:
    """Without what is held out, and what was recoded from it."""
    gone = {*hold_out, *(g + RECODED for g in hold_out)}
    return {group: weight for group, weight in c.weights.items() if group not in gone}


def _stack(network: torch.nn.Module) -> torch.nn.Module:
    return next(m for m in network.children() if hasattr(m, "norm_f"))


def _autocast(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def _optimisers(
    network: torch.nn.Module, c: TrainConfig, device: torch.device
) -> list[torch.optim.Optimizer]:
    """Muon for the projections of the blocks, if wanted; AdamW, with decay of matrices only, for the rest."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    turned = [p for n, p in named if p.ndim == 2 and "_proj" in n] if c.muon else []
    chosen = {id(p) for p in turned}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": c.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.98), fused=device.type == "cuda")
    if not turned:
        return [adam]
    muon = torch.optim.Muon(
        turned, lr=c.lr, weight_decay=c.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


@contextlib.contextmanager
def _progress():
    """A function of the share that is done, which draws a bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("training", total=1.0)
        yield lambda done: bar.update(task, completed=done)


def _report(out: Path, **row: float) -> None:
    line = json.dumps({k: round(v, 5) for k, v in row.items()})
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def read_config(path: Path | None) -> tuple[ModelConfig, TrainConfig, ErrorConfig]:
    """The three tables of a TOML file; whatever it leaves out keeps its default.

    Raises:
        DataError: no TOML, or an unknown table or setting.
    """
    kinds = {"model": ModelConfig, "train": TrainConfig, "errors": ErrorConfig}
    try:
        tables = tomllib.loads(path.read_text()) if path else {}
        if unknown := set(tables) - set(kinds):
            raise DataError(f"{path}: unknown table {sorted(unknown)}: use {sorted(kinds)}")
        return tuple(kind(**_tuples(tables.get(name, {}))) for name, kind in kinds.items())
    except (TypeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: {error}") from None


def _tuples(table: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
