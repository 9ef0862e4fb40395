"""Write a FASTQ of a mixed sample: simulated human reads, and real reads of microbes, named by their source.

    python examples/genomics/make_reads.py [--out reads.fastq] [--each 20] [--longest 1200]

Human reads are drawn from the TEST stretch of the chromosome with the stated 12 % of errors; microbial ones
are the first of each TEST source, cut to the same lengths. Qualities are a placeholder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from genomes import DEFAULT_CACHE, DataError, human
from host_peers import letters
from host_sources import HUMAN_TEST
from reads import ReadSimulator, room
from testreads import MODELS, REAL, SKIP, real_reads

HERE = Path(__file__).resolve().parent
SHORTEST = 500


def records(cache: Path, each: int, longest: int, seed: int = 0) -> list[tuple[str, str]]:
    """Names and letters; as many human reads as of all other sources."""
    rng = np.random.default_rng(seed)
    found = []
    for source in REAL:
        reads = [read for read in real_reads(source, cache) if len(read) >= SHORTEST + SKIP]
        for number in range(each):
            length = int(rng.integers(SHORTEST, longest + 1))
            found.append((f"{source}_{number}", letters(reads[number][SKIP : SKIP + length])))
    chromosome = human(cache, HUMAN_TEST)
    draw = ReadSimulator(MODELS["stated"], torch.device("cpu"), seed)
    for number in range(each * len(REAL)):
        length = int(rng.integers(SHORTEST, longest + 1))
        first = int(rng.integers(0, len(chromosome) - room(length)))
        genome = torch.from_numpy(chromosome[first : first + room(length)].astype(np.int64))[None]
        genome = 3 - genome.flip(1) if rng.random() < 0.5 else genome
        found.append((f"human_{number}", letters(draw.read(genome, length)[0].numpy())))
    return [found[i] for i in rng.permutation(len(found))]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, default=HERE / "reads.fastq")
    parser.add_argument("--each", type=int, default=20, help="reads of every microbial source")
    parser.add_argument("--longest", type=int, default=1200, help="bases")
    args = parser.parse_args()
    try:
        found = records(args.cache, args.each, args.longest)
        args.out.write_text("".join(f"@{name}\n{text}\n+\n{'?' * len(text)}\n" for name, text in found))
    except (DataError, OSError) as error:
        print(f"make_reads: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {len(found)} reads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
