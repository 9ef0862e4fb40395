"""Genomes as arrays of bases: read from the fetched packages, cut into splits, stored at 2 bits a base.

    python examples/genomics/genomes.py [--cache DIR] [--out DIR]

Bases are 0 to 3 for A, C, G, T, as the tokens of the alphabet "nucleotides"; anything else is left out.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import multiprocessing
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from host_sources import HUMAN, HUMAN_TRAIN, HUMAN_VALID, SOURCES, Part
from recode import recoded

DEFAULT_CACHE = Path.home() / ".cache" / "streamssm" / "host"
RECODED = "~"  # ends the group of genomes whose codons were drawn anew
CODES = np.full(256, 4, np.uint8)
CODES[np.frombuffer(b"ACGTUacgtu", np.uint8)] = [0, 1, 2, 3, 3] * 2
VALID_SHARE = 0.1  # of the end of a genome that serves both training and validation
BOTH = ("tuberculosis", "knowlesi")
BACTERIA = ("klebsiella", "vibrio", "tuberculosis", "helicobacter")
COPIES = 6  # recodings of each, all with habits of their own
PIECE = 3_000_000  # bases that are recoded at a time


class DataError(RuntimeError):
    """Data is missing or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Genomes:
    """Bases of groups, one after the other: those of ``groups[g]`` are ``bases[starts[g]:starts[g + 1]]``."""

    bases: np.ndarray  # [n] uint8, 0 to 3
    groups: tuple[str, ...]
    starts: np.ndarray  # [groups + 1] int64

    def of(self, group: str) -> np.ndarray:
        """The bases of one group."""
        g = self.groups.index(group)
        return self.bases[self.starts[g] : self.starts[g + 1]]

    def only(self, wanted: list[str]) -> Genomes:
        """The wanted groups, in that order."""
        return joined({group: [self.of(group)] for group in wanted})

    def save(self, path: Path) -> None:
        """Write at 2 bits a base."""
        quads = np.pad(self.bases, (0, -len(self.bases) % 4)).reshape(-1, 4)
        packed = (quads << np.array([0, 2, 4, 6], np.uint8)).sum(1, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, packed=packed, groups=np.array(self.groups), starts=self.starts)

    @classmethod
    def load(cls, path: Path) -> Genomes:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is not there.
        """
        if not path.exists():
            raise DataError(f"{path} is missing; run genomes.py first")
        with np.load(path) as stored:
            quads = stored["packed"][:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
            starts = stored["starts"]
            return cls(quads.reshape(-1)[: starts[-1]], tuple(stored["groups"].tolist()), starts)


def joined(pieces: dict[str, list[np.ndarray]]) -> Genomes:
    """Put the pieces of each group together."""
    arrays = [np.concatenate(parts) for parts in pieces.values()]
    starts = np.cumsum([0, *map(len, arrays)])
    return Genomes(np.concatenate(arrays), tuple(pieces), starts)


def open_part(part: Part, package: str, cache: Path) -> bytes:
    """The bytes of a file of a package, unpacked.

    Raises:
        DataError: it was not fetched.
    """
    path = cache / package / part.path
    if not path.exists():
        raise DataError(f"{path} is missing; run fetch.py first")
    if part.member:
        with tarfile.open(path) as archive:
            return archive.extractfile(part.member).read()
    return {".gz": gzip, ".xz": lzma}[path.suffix].open(path).read()


def fasta(data: bytes) -> Iterator[np.ndarray]:
    """The sequences of a FASTA file as bases, 4 for what is none."""
    for record in data.split(b">")[1:]:
        _, _, letters = record.partition(b"\n")
        codes = CODES[np.frombuffer(letters, np.uint8)]
        yield codes[np.frombuffer(letters, np.uint8) != ord("\n")]


def find(group: str) -> list[tuple[str, Part]]:
    """Package and file of a group."""
    return [(s.package, p) for s in SOURCES for p in s.parts if p.group == group]


def bases_of(group: str, cache: Path) -> list[np.ndarray]:
    """Each genome of a group, its sequences joined."""
    return [np.concatenate([*fasta(open_part(part, package, cache))]) for package, part in find(group)]


def human(cache: Path, region: tuple[int, int]) -> np.ndarray:
    """A region of the human chromosome without the bases that nobody knows."""
    (chromosome,) = bases_of(HUMAN, cache)
    cut = chromosome[slice(*region)]
    return cut[cut < 4]


def build(cache: Path, seed: int = 1) -> tuple[Genomes, Genomes]:
    """TRAIN, without recoded genomes, and validation."""
    train = {HUMAN: [human(cache, HUMAN_TRAIN)]}
    valid = {HUMAN: [human(cache, HUMAN_VALID)]}
    rng = np.random.default_rng(seed)
    for group in (*BACTERIA, "knowlesi"):
        genomes = [g[g < 4] for g in bases_of(group, cache)]
        if group in BOTH:
            end = round(len(genomes[0]) * (1 - VALID_SHARE))
            valid[group] = [genomes[0][end:]]
            genomes = [genomes[0][:end]]
        train[group] = genomes
    train["noise"] = [noise(rng)]
    valid["staphylococcus"] = [g[g < 4] for g in bases_of("staphylococcus", cache)]
    return joined(train), joined(valid)


def noise(rng: np.random.Generator, blocks: int = 4_000, length: int = 1_000) -> np.ndarray:
    """Bases that come from nowhere: by chance, each block with a composition and a stickiness of its own."""
    shares = rng.dirichlet([2.0] * 4, blocks).cumsum(1)
    bases = (rng.random((blocks, length))[..., None] > shares[:, None]).sum(2).clip(max=3).astype(np.uint8)
    sticks = rng.random((blocks, length)) < rng.uniform(0, 0.5, (blocks, 1))
    for i in range(1, length):
        bases[:, i] = np.where(sticks[:, i], bases[:, i - 1], bases[:, i])
    return bases.reshape(-1)


def with_recoded(genomes: Genomes, copies: int, seed: int = 1) -> Genomes:
    """The genomes and, for each group of bacteria, so many recodings of it, made by all processors."""
    groups = [g for g in BACTERIA if g in genomes.groups]
    jobs = [
        (genomes.of(group)[at : at + PIECE], (seed, g, copy, at))
        for g, group in enumerate(groups)
        for copy in range(copies)
        for at in range(0, len(genomes.of(group)), PIECE)
    ]
    pieces = {group: [genomes.of(group)] for group in genomes.groups}
    with multiprocessing.get_context("spawn").Pool() as pool:
        for (_, (_, g, _, _)), found in zip(jobs, pool.imap(_recoded, jobs), strict=True):
            pieces.setdefault(groups[g] + RECODED, []).append(found)
    return joined(pieces)


def _recoded(job: tuple[np.ndarray, tuple[int, ...]]) -> np.ndarray:
    bases, seed = job
    return recoded(bases, np.random.default_rng(seed))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, help="folder of train.npz and valid.npz; else that of --cache")
    parser.add_argument("--copies", type=int, default=COPIES, help="recodings of each group of bacteria")
    parser.add_argument("--seed", type=int, default=1, help="of the recodings")
    args = parser.parse_args()
    try:
        train, valid = build(args.cache)
        train = with_recoded(train, args.copies, args.seed)
    except (DataError, OSError) as error:
        print(f"genomes: {error}", file=sys.stderr)
        return 1
    for name, genomes in (("train", train), ("valid", valid)):
        genomes.save((args.out or args.cache) / f"{name}.npz")
        for group in genomes.groups:
            print(f"{name} {group}: {len(genomes.of(group)) / 1e6:.1f} million bases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
