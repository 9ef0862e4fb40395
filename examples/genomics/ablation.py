"""What the network would reach if it knew the very genomes of TEST; nothing made here ever ships.

    python examples/genomics/ablation.py CHECKPOINT --know microbes --out runs/known [--seconds 72]

goes on from the averaged weights of a checkpoint: `microbes` with the genomes of the TEST microbes in place
of most others, `both` also with TEST's stretch of the human chromosome in place of TRAIN's. `limits.py`
scores what comes out.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from genomes import DEFAULT_CACHE, DataError, Genomes, bases_of, human, joined
from host_sources import HUMAN, HUMAN_TEST
from host_training import TrainConfig, Trainer, read_config

KNOWN = {"ecoli_reference": 0.6, "lambda_reference": 0.3}  # shares; the microbes of TRAIN have what is left
LR, WARMUP, VALID_EVERY = 1e-3, 50, 1000


def of_test(cache: Path) -> Genomes:
    """The genomes of the TEST microbes, and TEST's stretch of the human chromosome."""
    pieces = {HUMAN: [human(cache, HUMAN_TEST)]}
    for group in KNOWN:
        genome = np.concatenate(bases_of(group, cache))
        pieces[group] = [genome[genome < 4]]
    return joined(pieces)


def known(train: Genomes, test: Genomes, know: str) -> Genomes:
    """The genomes of TRAIN with those of TEST that are to be known (`microbes` or `both`)."""
    pieces = {group: [train.of(group)] for group in train.groups}
    pieces |= {group: [test.of(group)] for group in KNOWN}
    if know == "both":
        pieces[HUMAN] = [test.of(HUMAN)]
    return joined(pieces)


def recipe(config: TrainConfig) -> TrainConfig:
    """The schedule and the shares of the groups with what is known among them."""
    left = 1 - sum(KNOWN.values())
    whole = sum(config.weights.values())
    weights = {group: weight * left / whole for group, weight in config.weights.items()}
    return replace(config, lr=LR, warmup=WARMUP, valid_every=VALID_EVERY, weights=weights | KNOWN)


def main() -> int:
    """Entry point."""
    args = _arguments()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(*read_config(args.config), args)
        trainer.begin_with(args.checkpoint)
        genomes = known(Genomes.load(args.data / "train.npz"), of_test(args.cache), args.know)
        trainer.begin_again(genomes, recipe(trainer.train_config), args)
        trainer.run()
    except (DataError, OSError) as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--know", choices=("microbes", "both"), required=True)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("third.toml"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of fetch.py")
    parser.add_argument("--data", type=Path, default=DEFAULT_CACHE, help="folder of train.npz and valid.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fast", action="store_true", help="one matrix form for a read, in bfloat16 on CUDA")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (CUDA, Triton)")
    parser.add_argument("--seconds", type=float, default=72.0)
    return parser.parse_args(namespace=Namespace(hold_out=[]))


if __name__ == "__main__":
    sys.exit(main())
