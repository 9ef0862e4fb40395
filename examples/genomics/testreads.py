"""The TEST reads: real reads of microbes in fragments, simulated human reads beside them.

A fragment is LENGTH bases from inside a real read; the first SKIP bases of every read, where adapters and
barcodes are, stay out. Fragments know their read, over which intervals are drawn.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from genomes import CODES, bases_of, find, human, open_part
from host_sources import HUMAN_TEST
from reads import ErrorConfig, ReadSimulator, room

LENGTH, SKIP = 400, 100
REAL = ("ecoli_pacbio", "ecoli_nanopore", "lambda_nanopore")
FRAGMENTS = 4_000  # of each source, at most
HUMANS = 8_000  # simulated reads of the stated error model, and half as many of the others
PACBIO_BYTES = 60_000_000  # of the FASTQ: the first 3,700 reads


def of_rate(rate: float, mix: tuple[float, float, float] = (1, 1, 1)) -> ErrorConfig:
    """Errors at a stated rate, the same for all reads but for bursts within a read."""
    return ErrorConfig(
        rate=(rate, rate), p_clean=0.0, p_rough=0.0, mix=mix, mix_spread=0.1, homopolymer=(0.0, 0.0)
    )


#: error models of simulated reads: errors for each base of the genome, and shares of substitutions,
#: insertions and deletions. `pacbio` and `nanopore` are what alignments (minimap2, to MG1655) of the real
#: E. coli reads of the test show; `stated` is the 12 % of the peers' figures, in equal parts.
MODELS = {
    "stated": of_rate(0.12, (1, 1, 1)),
    "pacbio": of_rate(0.144, (0.17, 0.53, 0.30)),
    "nanopore": of_rate(0.189, (0.33, 0.14, 0.53)),
    "clean": ErrorConfig(rate=(0.0, 0.0), p_clean=0.0, p_rough=0.0),
}
MATCHED = {"ecoli_pacbio": "pacbio", "ecoli_nanopore": "nanopore", "lambda_nanopore": "nanopore"}


@dataclass(frozen=True)
class ReadSet:
    """Fragments of one source."""

    name: str
    bases: np.ndarray  # [fragments, LENGTH] uint8, tokens of ACGTN
    read: np.ndarray  # [fragments] the number of the read (or the simulated place) it comes from


def real_reads(group: str, cache: Path) -> list[np.ndarray]:
    """The reads of a FASTQ file as tokens, in the file's order."""
    ((package, part),) = find(group)
    if part.member:  # a long file: only its start is read
        with tarfile.open(cache / package / part.path) as archive:
            data = archive.extractfile(part.member).read(PACBIO_BYTES)
    else:
        data = open_part(part, package, cache)
    lines = data.split(b"\n")
    whole = len(lines) // 4 * 4 - 4  # the last record may be cut
    return [CODES[np.frombuffer(line, np.uint8)] for line in lines[1:whole:4]]


def fragments(name: str, reads: list[np.ndarray], limit: int = FRAGMENTS, seed: int = 0) -> ReadSet:
    """Non-overlapping fragments, at most `limit`, as evenly over the reads as their lengths allow."""
    rng = np.random.default_rng(seed)
    places = []
    for number, read in enumerate(reads):
        starts = np.arange(SKIP, len(read) - LENGTH + 1, LENGTH)
        places += [(rank, number, s) for rank, s in enumerate(rng.permutation(starts).tolist())]
    places = sorted(places)[:limit]
    bases = np.stack([reads[number][s : s + LENGTH] for _, number, s in places])
    return ReadSet(name, bases, np.array([number for _, number, _ in places]))


def starts(name: str, reads: list[np.ndarray]) -> ReadSet:
    """The first LENGTH bases of every read, adapters and all."""
    long = [read[:LENGTH] for read in reads if len(read) >= LENGTH][:FRAGMENTS]
    return ReadSet(name, np.stack(long), np.arange(len(long)))


def simulated(name: str, genome: np.ndarray, errors: ErrorConfig, count: int, seed: int) -> ReadSet:
    """Reads of both strands from anywhere in the genome."""
    rng, size = np.random.default_rng(seed), room(LENGTH)
    first = rng.integers(0, len(genome) - size, count)
    bases = genome[first[:, None] + np.arange(size)]
    reverse = rng.random((count, 1)) < 0.5
    bases = np.where(reverse, 3 - bases[:, ::-1], bases)
    draw = ReadSimulator(errors, torch.device("cpu"), seed)
    parts = torch.from_numpy(bases.astype(np.int64)).split(2_000)
    reads = torch.cat([draw.read(part, LENGTH).to(torch.uint8) for part in parts])
    # neighbours on the chromosome share repeats: intervals are drawn over stretches of 100,000 bases
    return ReadSet(name, reads.numpy(), first // 100_000)


def build(cache: Path) -> dict[str, ReadSet]:
    """All sets by name: negatives by source, and `human_MODEL` for each error model."""
    found: list[ReadSet] = []
    for group in REAL:
        reads = real_reads(group, cache)
        found += [fragments(group, reads), starts(f"{group}_starts", reads)]
    coli = np.concatenate(bases_of("ecoli_reference", cache))
    for seed, model in enumerate(("pacbio", "nanopore", "clean")):
        name = f"ecoli_simulated_{model}"
        found.append(simulated(name, coli[coli < 4], MODELS[model], FRAGMENTS, 100 + seed))
    chromosome = human(cache, HUMAN_TEST)
    for seed, (model, errors) in enumerate(MODELS.items()):
        found.append(simulated(f"human_{model}", chromosome, errors, _humans(model), 200 + seed))
    return {reads.name: reads for reads in found}


def _humans(model: str) -> int:
    return HUMANS if model == "stated" else HUMANS // 2
