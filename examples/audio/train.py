"""Train the voice activity network on endless mixtures; CPU or CUDA, seeded, resumable.

    python examples/audio/train.py --config examples/audio/train.toml --out runs/vad
    python examples/audio/train.py --config examples/audio/tune.toml --start runs/vad/best.pt --out runs/tuned

`OUT/last.pt` is where to resume from, `OUT/best.pt` the best weights by validation ROC-AUC.
Rows keep their recurrent state from one batch to the next with some probability, so that the
network also learns what long streams look like. On CUDA a whole update is one recorded graph.
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
from grow import grown
from mixing import MixConfig, Mixer, Planner, Table
from model import ModelConfig, build, load, parameters, save, stored_in
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from spectra import SecondTarget, mask_band, warp_bands
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from validation import Validation

from streamssm.atomic import replacing
from streamssm.export.layers import Sequential


@dataclass(frozen=True)
class TrainConfig:
    """How long and how hard to train."""

    steps: int = 12_000
    seconds: float = 0.0  # where above 0, the schedule follows the clock and ends here
    batch: int = 96
    lr: float = 3e-3
    lr_last: float = 1e-5
    warmup: int = 300
    weight_decay: float = 0.02
    clip: float = 1.0
    average: float = 0.998  # of the weights that are validated and kept
    p_carry: float = 0.6  # chance that a row goes on from its last state
    masked: float = 0.0  # share of rows that hear nothing of a random band of the spectrum
    warped: float = 0.0  # largest change of the spectrum's scale, in half of the rows: other throats
    favoured: str = ""  # part of the names of the packages whose speech is drawn `favour` times as often
    favour: float = 1.0
    share: float = 0.0  # weight of the second target: how much of each band is speech
    valid_every: int = 500
    workers: int = 3
    seed: int = 1


class Trainer:
    """Everything that a training run remembers."""

    def __init__(self, model: ModelConfig, train: TrainConfig, mix: MixConfig, args):
        torch.manual_seed(train.seed)
        network, model = _begin(args.start, model, args.grow)
        self.model_config, self.train_config, self.mix_config, self.out = model, train, mix, args.out
        self.device = torch.device(args.device)
        speech, noise = (Pool.load(args.cache / f"train-{name}.npz") for name in ("speech", "noise"))
        talk, beds = Table(speech, 0.8, {train.favoured: train.favour}), Table(noise, 0.35)
        self.plans = Planner(talk, beds, mix, train.batch, train.seed)
        torch.set_float32_matmul_precision("high")
        if args.fast_scan:
            _fuse(self.device)
        self.network = network.train().to(self.device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        if train.masked or train.warped:
            self.network[0].register_forward_hook(
                lambda _, __, out: (mask_band(warp_bands(out[0], train.warped), train.masked), out[1])
            )
        self.second = SecondTarget(self.network, model).to(self.device) if train.share else None
        self.optimiser = _optimiser([self.network, self.second], train, self.device)
        self.mixer = Mixer(speech, noise, mix, self.device)
        self.valid = Validation(args.cache, self.device)
        self.state = self.network.init_state(train.batch, self.device)
        self.step, self.best, self.losses, self.began = 0, 0.0, [], time.monotonic()
        self.spent = 0.0  # seconds, before this process
        self.update = Update(self, not args.no_graph)

    def run(self) -> None:
        """Train to the end, validating and saving on the way."""
        self.began, first = time.monotonic(), self.step
        with _progress() as bar:
            task = bar.add_task("training", total=self.train_config.steps, completed=self.step)
            for plan in self._planned():
                self.one_step(plan)
                bar.update(task, completed=self.step)
                done = self.step >= self.train_config.steps or self.progress() >= 1
                if done or self.step % self.train_config.valid_every == 0:
                    self.validate(first)
                if done:
                    break

    def _planned(self):
        """Plans of the steps to come, made by worker processes."""
        steps = range(self.step, self.train_config.steps)
        return DataLoader(
            self.plans, batch_size=None, sampler=steps, num_workers=self.train_config.workers
        ) if self.train_config.workers else map(self.plans.__getitem__, steps)  # fmt: skip

    def progress(self) -> float:
        """How much of the run is over, 0 to 1."""
        c = self.train_config
        return (self.spent + time.monotonic() - self.began) / c.seconds if c.seconds else self.step / c.steps

    def one_step(self, plan) -> None:
        """One update from one fresh batch, without waiting for the device."""
        sound, labels, speech, plain = self.mixer.parts(plan)
        rate = learning_rate(self.train_config, self.step, self.progress())
        inputs = [sound, labels, self._keep()]
        if self.second:
            inputs.append(self.second.target(speech, plain))
        self.losses.append(self.update(rate, *inputs))
        self._average()
        self.step += 1

    def _keep(self) -> Tensor:
        rng = torch.Generator().manual_seed(self.train_config.seed * 1_000_003 + self.step)
        keep = torch.rand(self.train_config.batch, generator=rng) < self.train_config.p_carry
        return keep.float().to(self.device, non_blocking=True)

    @torch.no_grad()
    def _average(self) -> None:
        weight = 1 - min(self.train_config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), weight)

    @torch.no_grad()
    def validate(self, first: int) -> None:
        """Score the averaged weights on the fixed validation mixtures and save."""
        rate = (self.step - first) / (time.monotonic() - self.began)
        scores = self.valid.score(self.averaged)
        loss = float(torch.stack(self.losses).mean())
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} after {self.step} steps: try a lower lr")
        self.losses = []
        seconds = time.monotonic() - self.began
        _report(self.out, step=self.step, seconds=seconds, loss=loss, steps_per_s=rate, **scores)
        if scores["valid"] > self.best:
            self.best = scores["valid"]
            self.save_best(scores)
        self.save_last()

    def save_best(self, scores: dict[str, float]) -> None:
        """Keep these averaged weights as the best so far."""
        notes = {"step": self.step, "valid_auc": scores["valid"], "train": asdict(self.train_config)}
        notes |= {"mix": asdict(self.mix_config), "scores": scores}
        save(self.out / "best.pt", self.averaged, self.model_config, **notes)

    def save_last(self) -> None:
        """Write all that `resume` needs."""
        everything = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "second": self.second.state_dict() if self.second else {},
            "state": self.state,
            "step": self.step,
            "best": self.best,
            "spent": self.spent + time.monotonic() - self.began,
        }
        with replacing(self.out / "last.pt") as scratch:
            torch.save(everything, scratch)

    def resume(self) -> None:
        """Go on from `last.pt`, if there is one.

        Raises:
            DataError: it is of another network or batch, or trained with another second target.
        """
        path = self.out / "last.pt"
        if not path.exists():
            return
        stored = stored_in(path, self.device)
        try:
            for part in ("network", "averaged", "optimiser", *(["second"] if self.second else [])):
                getattr(self, part).load_state_dict(stored[part])
            for name, value in self.state.items():
                value.copy_(stored["state"][name])
        except (RuntimeError, KeyError, ValueError):  # the last one from the optimiser
            raise DataError(f"{path} is of another network, batch or share: give another --out") from None
        self.step, self.best, self.spent = stored["step"], stored["best"], stored["spent"]


class Update:
    """One step of the optimiser, as a function of (learning rate, sound, labels, rows to carry, mask).

    On CUDA the third call records everything from the forward pass to the new weights in a graph,
    and later calls replay it: several thousand small kernels for the price of one launch.
    """

    def __init__(self, trainer: Trainer, recorded: bool):
        self.t, self.recorded, self.calls, self.graph = trainer, recorded, 0, None

    def __call__(self, rate: float, *inputs: Tensor) -> Tensor:
        """The loss of this step without that of the second target, on the device."""
        for group in self.t.optimiser.param_groups:
            group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else group.update(lr=rate)
        self.calls += 1
        if self.t.device.type != "cuda" or not self.recorded:
            return self._eager(*inputs)
        if self.graph is None:
            return self._warm(inputs)
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new)
        self.graph.replay()
        return self.loss.clone()

    def _warm(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The first calls run as they are, on a stream of their own; then comes the recording."""
        if self.calls == 1:
            self.inputs = [x.clone() for x in inputs]
            self.stream = torch.cuda.Stream()
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self._eager(*self.inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        if self.calls == 3:
            torch.cuda.synchronize()
            self.t.optimiser.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self._eager(*self.inputs)
        return loss

    def _eager(self, sound: Tensor, labels: Tensor, keep: Tensor, *mask: Tensor) -> Tensor:
        t = self.t
        held = {k: v * keep.to(v.dtype).view(-1, *[1] * (v.ndim - 1)) for k, v in t.state.items()}
        logits, state = t.network(sound, held)
        loss = binary_cross_entropy_with_logits(logits[..., 0].float(), labels)
        t.optimiser.zero_grad(set_to_none=True)
        whole = loss + t.train_config.share * t.second.loss(*mask) if mask else loss
        whole.backward()
        torch.nn.utils.clip_grad_norm_(t.network.parameters(), t.train_config.clip)
        t.optimiser.step()
        for name, value in state.items():
            t.state[name].copy_(value.detach())
        return loss.detach()


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then half a cosine over the run's progress down to `lr_last`."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    rate = config.lr_last + (config.lr - config.lr_last) * cosine
    return rate * min(1.0, (step + 1) / config.warmup)


def _begin(start: Path | None, model: ModelConfig, grow: bool) -> tuple[Sequential, ModelConfig]:
    """The network to train, and its sizes: new, or of a file, or of a file and grown to `model`.

    Raises:
        DataError: there is nothing to grow, or it cannot grow to that.
    """
    if start is None:
        if grow:
            raise DataError("--grow needs --start, the weights that are to grow")
        return build(model), model
    network, stored, _ = load(start)
    return (grown(network, stored, model), model) if grow else (network, stored)


def _optimiser(
    networks: list[torch.nn.Module | None], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, and not on the state matrix of a Mamba layer."""
    named = [(n, p) for network in networks if network for n, p in network.named_parameters()]
    named = [(n, p) for n, p in named if p.requires_grad]
    decayed = [p for n, p in named if p.ndim > 1 and "A_log" not in n]
    others = [p for n, p in named if p.ndim <= 1 or "A_log" in n]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    cuda = device.type == "cuda"
    rate = torch.tensor(config.lr, device=device) if cuda else config.lr
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), capturable=cuda, fused=cuda or None)


def _fuse(device: torch.device) -> None:
    """Triton kernels on CUDA; elsewhere the run is the same, only slower."""
    if device.type != "cuda":
        print(f"train: --fast-scan does nothing on {device.type}", file=sys.stderr)
        return
    try:
        import fast_scan
    except ImportError:
        raise DataError("--fast-scan needs Triton: pip install triton, or leave it out") from None
    fast_scan.install()


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"))
    return Progress(*columns, TimeRemainingColumn(), disable=not sys.stderr.isatty())


def _report(out: Path, **row: float) -> None:
    line = json.dumps({k: round(v, 5) for k, v in row.items()})
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def read_config(path: Path | None) -> tuple[ModelConfig, TrainConfig, MixConfig]:
    """The three tables of a TOML file; whatever it leaves out keeps its default.

    Raises:
        DataError: no TOML, or an unknown table or setting.
    """
    kinds = {"model": ModelConfig, "train": TrainConfig, "mix": MixConfig}
    try:
        tables = tomllib.loads(path.read_text()) if path else {}
        if unknown := set(tables) - set(kinds):
            raise DataError(f"{path}: unknown table {sorted(unknown)}: use {sorted(kinds)}")
        return tuple(kind(**_tuples(tables.get(name, {}))) for name, kind in kinds.items())
    except (TypeError, tomllib.TOMLDecodeError) as error:
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
    parser.add_argument("--start", type=Path, help="go on from the weights of this .pt file")
    parser.add_argument("--grow", action="store_true", help="with --start: to the sizes in the config")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fast-scan", action="store_true", help="fused scan (CUDA, Triton)")
    parser.add_argument("--no-graph", action="store_true", help="on CUDA: launch every kernel by itself")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
