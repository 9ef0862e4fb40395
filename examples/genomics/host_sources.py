"""The catalogue of genomes and reads: package, version, licence, and which file plays which role.

A human chromosome against microbes. TRAIN and TEST share no species and no megabase of the human
chromosome; Staphylococcus aureus is in neither and serves validation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HUMAN = "human"
#: human X (GRCh37): the pseudo-autosomal end is left out; validation is cut from the end of TRAIN
HUMAN_TRAIN, HUMAN_VALID, HUMAN_TEST = (
    (2_700_000, 48_000_000),
    (48_000_000, 50_000_000),
    (50_000_000, 70_000_000),
)


@dataclass(frozen=True)
class Part:
    """One file: ``path`` in the package, ``member`` of it if it is an archive."""

    group: str  # a species, or a set of reads
    split: str  # "train", "valid" or "test"
    path: str
    member: str = ""
    strain: str = ""


@dataclass(frozen=True)
class Source:
    """One Debian package."""

    package: str
    version: str
    licence: str
    parts: tuple[Part, ...] = field(default_factory=tuple)


_SMALT = "usr/share/doc/smalt/test/data"
_RAGOUT = "usr/share/doc/ragout/examples"
_KLEBORATE = "usr/share/doc/kleborate/examples/data"
_SHEEP = "selfSampleData"

SOURCES = (
    Source(
        "smalt-examples",
        "0.7.6-12",
        "GPL-3 (the package's)",
        (
            Part(HUMAN, "train", f"{_SMALT}/hs37chrXtrunc.fa.gz"),
            Part("knowlesi", "train", f"{_SMALT}/cigar_ref.fa.gz"),
        ),
    ),
    Source(
        "kleborate-examples",
        "2.3.1-2",
        "GPL-3+ (the package's)",
        tuple(
            Part("klebsiella", "train", f"{_KLEBORATE}/{name}.fna.xz", strain=name)
            for name in ("Klebs_HS11286", "Klebs_Kp1084", "MGH78578", "NTUH-K2044")
        ),
    ),
    Source(
        "ragout-examples",
        "2.3-4",
        "BSD-3-clause (the package's)",
        (
            *(
                Part("vibrio", "train", f"{_RAGOUT}/V.Cholerae/references/{name}.fasta.gz", strain=name)
                for name in ("H1", "O1_Inaba", "O1_biovar", "O395")
            ),
            *(
                Part("helicobacter", "train", f"{_RAGOUT}/H.Pylori/references/{name}.fasta.gz", strain=name)
                for name in ("ELS37", "G27", "Gambia94_24", "Puno120", "SJM180")
            ),
            Part("staphylococcus", "valid", f"{_RAGOUT}/S.Aureus/references/N315.fasta.gz"),
            Part("ecoli_reference", "test", f"{_RAGOUT}/E.Coli/references/MG1655-K12.fasta.gz"),
        ),
    ),
    Source(
        "kmer-examples",
        "0~20150903+r2013-8",
        "unrestricted (NCBI; the package's statement for these data)",
        (
            Part(
                "tuberculosis",
                "train",
                "usr/share/doc/kmer-examples/test_data.tar.gz",
                "GCF_000195955.2_ASM19595v2_genomic.fna",
            ),
        ),
    ),
    Source(
        "wtdbg2-examples",
        "2.5-9",
        "GPL-3+ (the package's)",
        (
            Part(
                "ecoli_pacbio",
                "test",
                "usr/share/doc/wtdbg2-examples/selfSampleData.tar.gz",
                f"{_SHEEP}/pacbio_filtered.fastq",
            ),
        ),
    ),
    Source(
        "python3-nanoget-examples",
        "1.16.1-2",
        "GPL-3+ (the package's)",
        (
            Part(
                "ecoli_nanopore",
                "test",
                "usr/share/doc/python3-nanoget/examples/nanotest/reads.fastq.gz",
            ),
        ),
    ),
    Source(
        "qcat-examples",
        "1.1.0-6",
        "MPL-2.0 (the package's)",
        (
            Part(
                "lambda_nanopore",
                "test",
                "usr/share/doc/qcat/examples/qcat/test/data/nobarcode_1k.fastq.gz",
            ),
        ),
    ),
    Source(
        "bowtie2-examples",
        "2.5.0-3",
        "GPL-3+ (the package's)",
        (
            Part(
                "lambda_reference",
                "test",
                "usr/share/doc/bowtie2/examples/reference/lambda_virus.fa.gz",
            ),
        ),
    ),
)
