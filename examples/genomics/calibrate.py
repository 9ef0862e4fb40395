"""Platt scaling on validation reads: the two numbers that make a logit a probability.

Human reads of the validation stretch against as many of the validation genomes, with errors as in training.
Among the microbes bacteria of a species that was trained on and of one that was not count alike, and an
eukaryote as much as in training. What comes out holds for reads of which half are human.
"""

from __future__ import annotations

from pathlib import Path

import torch
from genomes import Genomes
from reads import ErrorConfig, Reads
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

SEED, READS, LENGTH = 7, 4_000, 400
WEIGHTS = {"tuberculosis": 0.45, "staphylococcus": 0.45, "knowlesi": 0.10}


def fit(network: torch.nn.Module, valid: Path, reads: int = READS) -> tuple[float, float]:
    """(scale, shift) for the logits of an uncalibrated network."""
    logits, labels = scores(network, valid, reads)
    scale = torch.ones((), requires_grad=True)
    shift = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([scale, shift], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(logits * scale + shift, labels)
        value.backward()
        return value

    optimiser.step(loss)
    return scale.item(), shift.item()


@torch.no_grad()
def scores(network: torch.nn.Module, valid: Path, reads: int) -> tuple[Tensor, Tensor]:
    """Logits and labels [reads, answers]: a half of them human."""
    genomes = Genomes.load(valid)
    draw = Reads(genomes, WEIGHTS, ErrorConfig(), torch.device("cpu"), SEED)
    bases, labels = draw.batch(reads, LENGTH)
    logits = torch.cat([network(part)[0][..., 0] for part in bases.split(250)])
    return logits, labels[:, None].expand_as(logits)
