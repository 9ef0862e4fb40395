"""Training of several networks side by side: one batched computation, of which each network is a slice.

Letters: M networks, B rows, T samples. All parameters are stacked, [M, ...]; torch.func.vmap runs the
layers as they are. Ten small networks then cost little more time than one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from wrist_batches import AugmentConfig, Batches
from wrist_data import RATE, SECONDS, DataError, Series, of
from wrist_folds import starts
from wrist_model import ModelConfig, build
from wrist_model import save as save_networks
from wrist_scores import macro_f1

from streamssm.atomic import replacing

CHUNK = 6  # windows of each network that are scored at a time


@dataclass(frozen=True)
class TrainConfig:
    """How long and how hard to train."""

    steps: int = 2500
    batch: int = 24
    length: int = 400  # samples of a row; every row starts with a fresh state
    lr: float = 4e-3
    warmup: float = 0.03  # of the steps
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.995  # of the weights that are kept
    settle: int = 25  # samples after which a decision counts in full
    smoothing: float = 0.05
    seed: int = 1


@dataclass(frozen=True)
class Member:
    """One network: whom it never sees, its seed, and what is different in its augmentation."""

    name: str
    held_out: tuple[int, ...] = ()
    seed: int = 0
    augment: dict[str, float] = field(default_factory=dict)


class Training:
    """Everything that a run remembers."""

    def __init__(
        self,
        series: list[Series],
        members: list[Member],
        model: ModelConfig,
        train: TrainConfig,
        augment: AugmentConfig,
        device: torch.device,
    ):
        self.members, self.model, self.config, self.device = members, model, train, device
        networks = [_seeded(model, train.seed * 1000 + member.seed) for member in members]
        self.network = networks[0].to(device)
        stacked, _ = stack_module_state([network.to(device) for network in networks])
        self.weights = {n: p.detach().clone().requires_grad_() for n, p in stacked.items()}
        self.averaged = {n: p.detach().clone() for n, p in stacked.items()}
        self.optimiser = _optimiser(self.weights, train)
        strengths = [AugmentConfig(**{**asdict(augment), **member.augment}) for member in members]
        held_out = [member.held_out for member in members]
        self.batches = Batches(series, held_out, strengths, train.length, device, train.seed)
        self._made_as = [asdict(model), asdict(train), [m.name for m in members], held_out]
        self._made_as += [[asdict(strength) for strength in strengths]]
        settled = torch.arange(1, train.length + 1, device=device) / train.settle
        self.importance = settled.clamp(max=1.0)
        self.step, self.spent = 0, 0.0  # spent: seconds of training

    @property
    def size(self) -> int:
        """Parameters of one network."""
        return sum(p[0].numel() for p in self.weights.values())

    @property
    def progress(self) -> float:
        """How much of the run is done, by its steps."""
        return self.step / self.config.steps

    def one_step(self, progress: float) -> Tensor:
        """One update of every network; the mean loss, without waiting for the device."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # of dropout
        x, labels = self.batches.draw(self.config.batch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * schedule(progress, self.config.warmup)
        self.network.train()
        logits = self._forward(self.weights, x)
        target = labels * (1 - self.config.smoothing) + self.config.smoothing / labels.shape[-1]
        each = -(target[:, :, None] * logits.log_softmax(-1)).sum(-1)
        loss = (each * self.importance).sum((1, 2)) / (each.shape[1] * self.importance.sum())
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        clip(self.weights, self.config.clip)
        self.optimiser.step()
        self._average()
        self.step += 1
        return loss.detach()

    def _forward(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        def one(own: dict[str, Tensor], rows: Tensor) -> Tensor:
            return functional_call(self.network, own, (rows,))[0]

        return vmap(one, randomness="different")(weights, x)

    @torch.no_grad()
    def _average(self) -> None:
        weight = 1 - min(self.config.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.values()), list(self.weights.values()), weight)

    @torch.no_grad()
    def answers(self, x: list[np.ndarray]) -> list[np.ndarray]:
        """Each network's logits for its own windows [W, T, 6], after every sample: [W, T, 7]."""
        self.network.eval()
        longest = max(len(rows) for rows in x)
        padded = np.zeros((len(x), longest, *x[0].shape[1:]), np.float32)
        for place, rows in enumerate(x):
            padded[place, : len(rows)] = rows
        parts = [
            self._forward(self.averaged, torch.from_numpy(padded[:, at : at + CHUNK]).to(self.device)).cpu()
            for at in range(0, longest, CHUNK)
        ]
        whole = torch.cat(parts, 1).numpy()
        return [logits[: len(rows)] for logits, rows in zip(whole, x, strict=True)]

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "made_as": self._made_as,
            "step": self.step,
            "spent": self.spent,
            "weights": {n: p.detach() for n, p in self.weights.items()},
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "random": self.batches.random.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: it is of other networks or of another recipe; weights of one fold must never get into
                another, whose person they have seen.
        """
        if state.get("made_as") != self._made_as:
            raise DataError(
                "last.pt is of other networks or of another recipe: give this run an --out of its own"
            )
        self.step, self.spent = state["step"], state["spent"]
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.weights[name].copy_(value)
                self.averaged[name].copy_(state["averaged"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.batches.random.set_state(state["random"].cpu())


def schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to nearly nothing; a factor of the learning rate."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.003 + 0.997 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def clip(weights: dict[str, Tensor], most: float) -> None:
    """Scale each network's gradient to a norm of at most ``most``."""
    gradients = [p.grad for p in weights.values() if p.grad is not None]
    norm = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def _seeded(model: ModelConfig, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(model)


def _optimiser(weights: dict[str, Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only (stacked: of three axes or more)."""
    groups = [
        {"params": [p for p in weights.values() if p.ndim > 2], "weight_decay": config.weight_decay},
        {"params": [p for p in weights.values() if p.ndim <= 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), foreach=True)


def _asked(series: list[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows, their lengths and their labels."""
    x, lengths, place = starts(series)
    return x, lengths, np.array([one.label for one in series])[place]


def validate(training: Training, series: list[Series]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Each network's macro-F1 by person whom it has not seen, and its logits [W, 4, 7] after 1, 2, 4 and 8
    seconds of every window of theirs, NaN where a window is shorter."""
    rows, kept = [], {}
    people = [member.held_out or (1,) for member in training.members]
    for place in range(max(map(len, people))):
        asked = [_asked(of(series, who[place : place + 1] or who[:1])) for who in people]
        answers = training.answers([x for x, _, _ in asked])
        for member, (_, lengths, labels), logits in zip(training.members, asked, answers, strict=True):
            if place >= len(member.held_out):
                continue
            person, last = member.held_out[place], np.array(SECONDS) * RATE
            chosen = np.where((lengths[:, None] >= last)[..., None], logits[:, last - 1], np.nan)
            kept[f"{member.name}/of{person}"] = chosen.astype(np.float16)
            there = [lengths >= n for n in last]
            scores = [macro_f1(labels[t], chosen[t, i].argmax(-1)) for i, t in enumerate(there)]
            named = {f"f1_{s}s": round(score, 4) for s, score in zip(SECONDS, scores, strict=True)}
            rows.append({"member": member.name, "of": person} | named)
    return rows, kept


def save(path: Path, training: Training, notes: dict[str, Any]) -> None:
    """Write the averaged weights of all networks in 16 bits, with the settings that made them; but not those
    that are only there to choose by."""
    pairs = [len(member.held_out) > 1 for member in training.members]
    kept = [place for place, pair in enumerate(pairs) if not pair] or list(range(len(pairs)))
    members = [training.members[place] for place in kept]
    content = {
        "model": asdict(training.model),
        "train": asdict(training.config),
        "members": [asdict(member) for member in members],
        "weights": {n: p[kept].half().cpu() for n, p in training.averaged.items()},
        "notes": notes | {"step": training.step},
    }
    with replacing(path) as scratch:
        torch.save(content, scratch)


def split(path: Path, folder: Path) -> list[Path]:
    """Write the networks of a file of `save`, one small file for each candidate and seed, in which they are
    named after whom they have not seen ("1" to "10", or "all")."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in content["model"].items()}
    config = ModelConfig(**settings)
    groups: dict[str, dict[str, torch.nn.Module]] = {}
    for place, member in enumerate(content["members"]):
        candidate, seed, *_, fold = member["name"].split("/")
        network = build(config).eval()
        network.load_state_dict({n: p[place].float() for n, p in content["weights"].items()})
        groups.setdefault(f"{candidate}-{seed}", {})[fold] = network
    folder.mkdir(parents=True, exist_ok=True)
    notes = {"train": content["train"]} | content["notes"]
    for name, networks in groups.items():
        save_networks(folder / f"{name}.npz", networks, config, notes)
    return [folder / f"{name}.npz" for name in groups]
