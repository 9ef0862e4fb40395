"""Train the host network on endless simulated reads; CPU or CUDA, seeded, resumable.

    python examples/genomics/train.py --config examples/genomics/train.toml --out runs/host [--seconds S]

`OUT/last.pt` is where to resume from, `OUT/best.pt` the averaged weights of the last validation: the
learning rate ends at zero, and nothing is chosen by looking at scores. With `--seconds` the schedule goes by
the clock instead of by steps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from genomes import DEFAULT_CACHE, DataError
from host_model import parameters
from host_training import Trainer, read_config


def main() -> int:
    """Entry point."""
    args = _arguments()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(*read_config(args.config), args)
        if args.start:
            trainer.begin_with(args.start)
        trainer.resume()
        print(
            f"{parameters(trainer.network)} parameters on {args.device}, from step {trainer.step}", flush=True
        )
        trainer.run()
    except (DataError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data", type=Path, default=DEFAULT_CACHE, help="folder of train.npz and valid.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/host"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fast", action="store_true", help="one matrix form for a read, in bfloat16 on CUDA")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (CUDA, Triton)")
    parser.add_argument("--start", type=Path, help="begin with the weights of this checkpoint")
    parser.add_argument("--seconds", type=float, help="train for so long instead of for steps")
    parser.add_argument("--hold-out", action="append", default=[], help="a group to validate on instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
