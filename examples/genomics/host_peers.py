"""The peers: counts of 4-mers with logistic regression, and alignment to the full reference.

The regression is trained on simulated TRAIN reads, one for every length: fewer recoded ones than the network
gets, and neither adapters nor N, with which it does worse on the validation reads. mappy has an index of the
whole chromosome, which holds the very places that the human TEST reads come from.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from genomes import DataError, Genomes, human
from reads import ErrorConfig, Reads

K, READS, SEED = 4, 60_000, 5
LENGTHS = (100, 200, 400)
WEIGHTS = {
    "klebsiella": 0.17,
    "klebsiella~": 0.14,
    "vibrio": 0.16,
    "vibrio~": 0.13,
    "tuberculosis": 0.05,
    "tuberculosis~": 0.06,
    "helicobacter": 0.09,
    "helicobacter~": 0.08,
    "knowlesi": 0.10,
    "noise": 0.02,
}


class KmerRegression:
    """log odds of human from counts of 4-mers."""

    name = "4-mer logistic regression"

    def __init__(self, weights: dict[int, np.ndarray]):
        self.weights = weights  # of each length, [4**K + 1], the last is the bias

    @classmethod
    def trained(
        cls, genomes: Genomes, shares: dict[str, float] = WEIGHTS, lengths: tuple[int, ...] = LENGTHS
    ) -> KmerRegression:
        """Fit one regression for each length; `shares` are the groups' of the microbes."""
        from sklearn.linear_model import LogisticRegression

        draw = Reads(genomes, shares, ErrorConfig(), torch.device("cpu"), SEED)
        batches = [draw.batch(2_000, max(LENGTHS)) for _ in range(READS // 2_000)]
        x = np.concatenate([bases.numpy() for bases, _ in batches])
        y = np.concatenate([labels.numpy() for _, labels in batches])
        weights = {}
        for length in lengths:
            fitted = LogisticRegression(C=0.01, max_iter=300).fit(kmers(x[:, :length]), y)
            weights[length] = np.concatenate([fitted.coef_[0], fitted.intercept_])
        return cls(weights)

    @classmethod
    def cached(cls, cache: Path) -> KmerRegression:
        """As trained before by the same recipe on the same genomes, or trained now and kept.

        Raises:
            DataError: there are no genomes.
        """
        genomes = cache / "train.npz"
        if not genomes.exists():
            raise DataError(f"{genomes} is missing; run genomes.py first")
        with genomes.open("rb") as file:
            data = hashlib.file_digest(file, "sha256").hexdigest()
        recipe = repr((WEIGHTS, ErrorConfig(), K, READS, SEED, data))
        path = cache / f"kmers-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
        if not path.exists():
            fitted = cls.trained(Genomes.load(genomes)).weights
            np.savez(path, **{str(length): w for length, w in fitted.items()})
        with np.load(path) as stored:
            return cls({int(length): stored[length] for length in stored})

    def scores(self, bases: np.ndarray, lengths: tuple[int, ...] = LENGTHS) -> np.ndarray:
        """Scores [reads, lengths] of reads [reads, bases], at least as long as the longest."""
        columns = [kmers(bases[:, :n]) @ self.weights[n][:-1] + self.weights[n][-1] for n in lengths]
        return np.stack(columns, 1)


def kmers(bases: np.ndarray) -> np.ndarray:
    """Counts of 4-mers [reads, 256] of reads [reads, bases]; those with an N are not counted."""
    codes = bases.astype(np.int64)
    width = codes.shape[1] - K + 1
    index = sum(codes[:, i : i + width] * 4 ** (K - 1 - i) for i in range(K))
    unknown = sum(codes[:, i : i + width] > 3 for i in range(K)) > 0
    index[unknown] = 4**K
    row = np.arange(len(codes))[:, None]
    counts = np.bincount((row * (4**K + 1) + index).ravel(), minlength=len(codes) * (4**K + 1))
    return counts.reshape(len(codes), -1)[:, : 4**K].astype(np.float32)


class Alignment:
    """Matching bases of the best alignment, 0 where there is none."""

    name = "mappy, full reference"
    preset = "map-ont"

    def __init__(self, cache: Path):
        import mappy

        chromosome = human(cache, (0, 200_000_000))
        self.aligner = mappy.Aligner(seq=letters(chromosome), preset=self.preset, best_n=1)

    @staticmethod
    def installed() -> bool:
        """Whether mappy is here."""
        return importlib.util.find_spec("mappy") is not None

    def scores(self, bases: np.ndarray, lengths: tuple[int, ...] = LENGTHS) -> np.ndarray:
        """Scores [reads, lengths] of reads [reads, bases], at least as long as the longest."""
        texts = [letters(read) for read in bases]
        return np.array([[self._matches(text[:n]) for n in lengths] for text in texts], np.float64)

    def _matches(self, text: str) -> int:
        return max((hit.mlen for hit in self.aligner.map(text)), default=0)


def letters(bases: np.ndarray) -> str:
    """Tokens as text."""
    return np.frombuffer(b"ACGTN", np.uint8)[bases].tobytes().decode()
