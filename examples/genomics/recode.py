"""Microbes that do not exist: the same proteins in other codons.

What tells microbes from a human chromosome in a hundred bases is that they are nearly all protein, but
few genomes to train on means few habits of choosing codons, and a network takes those for the rule. So
every reading frame of a genome is translated, a part of its amino acids is replaced by similar ones, and
codons are drawn anew from habits that are drawn for each stretch; what lies between frames mutates.
"""

from __future__ import annotations

import numpy as np

SHORTEST = 100  # codons of a frame that is taken for a gene
STRETCH = 2_000  # codons that share habits
AMINO = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"  # of AAA, AAC, AAG ... TTT
SIMILAR = ("ILVM", "FYW", "KRH", "DENQ", "STAGPC")
_LETTERS = sorted(set(AMINO))
_AMINO = np.array([_LETTERS.index(a) for a in AMINO])
_STOPS = np.flatnonzero(np.array(list(AMINO)) == "*")
_CODON = np.array([[c >> 4, c >> 2 & 3, c & 3] for c in range(64)], np.uint8)


def frames(bases: np.ndarray) -> list[tuple[int, int]]:
    """Stretches between stops of at least SHORTEST codons on the forward strand, as (start, end)."""
    codons = bases[:-2].astype(np.int64) * 16 + bases[1:-1] * 4 + bases[2:]
    stop = np.isin(codons, _STOPS)
    found = []
    for frame in range(3):
        at = np.flatnonzero(stop[frame::3])
        ends = at * 3 + frame
        starts = np.concatenate([[frame], ends[:-1] + 3])
        long = ends - starts >= 3 * SHORTEST
        found += zip(starts[long].tolist(), ends[long].tolist(), strict=True)
    return found


def genes(bases: np.ndarray) -> list[tuple[int, int, bool]]:
    """Frames of both strands, longest first, none over another: (start, end, reverse)."""
    n = len(bases)
    found = [(s, e, False) for s, e in frames(bases)]
    found += [(n - e, n - s, True) for s, e in frames(3 - bases[::-1])]
    taken, kept = np.zeros(n, bool), []
    for start, end, reverse in sorted(found, key=lambda g: g[0] - g[1]):
        if not taken[start:end:16].any():
            taken[start:end] = True
            kept.append((start, end, reverse))
    return sorted(kept)


def recoded(bases: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The genome [n] with its proteins in other codons; the same length."""
    out = bases.copy()
    between = np.ones(len(bases), bool)
    forward, places = [], []
    for start, end, reverse in genes(bases):
        between[start:end] = False
        at = np.arange(start, end).reshape(-1, 3)
        at = at[::-1, ::-1] if reverse else at
        places.append(at)
        forward.append(np.full(len(at), reverse))
    at, reverse = np.concatenate(places), np.concatenate(forward)
    read = np.where(reverse[:, None], 3 - bases[at], bases[at]).astype(np.int64)
    codons = read @ np.array([16, 4, 1])
    new = np.concatenate([_redrawn(codons[i : i + STRETCH], rng) for i in range(0, len(codons), STRETCH)])
    fresh = _CODON[new]
    out[at] = np.where(reverse[:, None], 3 - fresh, fresh)
    mutate = between & (rng.random(len(bases)) < 0.3)
    out[mutate] = rng.integers(0, 4, mutate.sum())
    return out


def _redrawn(codons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codons for the same, or similar, amino acids by habits drawn here."""
    amino = _AMINO[codons]
    change = rng.random(len(codons)) < rng.uniform(0, 0.35)
    amino = np.where(change, _neighbour(amino, rng), amino)
    strong = ((_CODON == 1) | (_CODON == 2)).sum(1)  # C and G of a codon
    liking = rng.normal(0, 0.8, 64) + rng.uniform(-1.0, 1.0) * strong
    score = liking + rng.gumbel(size=(len(codons), 64))
    score[_AMINO[None] != amino[:, None]] = -np.inf
    return score.argmax(1)


def _neighbour(amino: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the similar amino acids for each."""
    out = amino.copy()
    for group in SIMILAR:
        members = np.array([_LETTERS.index(a) for a in group])
        inside = np.isin(amino, members)
        out[inside] = rng.choice(members, inside.sum())
    return out
