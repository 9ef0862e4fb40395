"""What reads begin with that is no genome: adapters of nanopore and PacBio libraries.

The sequences are those that trimmers know: ligation adapters, the rapid adapter, primers of cDNA and PCR
kits, a barcode with its flanks (the list of https://github.com/rrwick/Porechop), SMRTbell hairpins (NCBI
UniVec).
"""

from __future__ import annotations

import numpy as np

ADAPTERS = (
    "AATGTACTTCGTTCAGTTACGTATTGCT",
    "GCAATACGTAACTGAACGAAGT",
    "GTTTTCGCATTTATCGTGAAACGCTTTCGCGTTTTTCGTGCGCCGCTTCA",
    "GGCGTCTGCTTGGGTGTTTAACCTTTTTGTCAGAGAGGTTCCAAGTCAGAGAGGTTCCT",
    "TTTCTGTTGGTGCTGATATTGC",
    "ACTTGCCTGTCGCTCTATCTTC",
    "AAGGTTAACACAAAGACACCGACAACTTTCTTCAGCACCT",
    "ATCTCTCTCAACAACAACAACGGAGGAGGAGGAAAAGAGAGAGAT",
    "ATCTCTCTCTTTTCCTCCTCCTCCGTTGTTGTTGTTGAGAGAGAT",
)


def bank() -> np.ndarray:
    """All of them and their reverse complements, one after the other, as bases 0 to 3."""
    forward = [np.array(["ACGT".index(letter) for letter in adapter], np.uint8) for adapter in ADAPTERS]
    return np.concatenate([*forward, *(3 - adapter[::-1] for adapter in forward)])
