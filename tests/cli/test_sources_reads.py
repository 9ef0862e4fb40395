import contextlib
import gzip
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_tools import BYTES, DNA, IDS, give_stdin, notes_of, records

from streamssm.alphabet import Nucleotides
from streamssm.errors import SourceError, StreamSSMError
from streamssm.manifest import Input
from streamssm.sources import Request, open_source

pysam = pytest.importorskip("pysam")

NO_N = Input("bases", "tokens", "int64", (), vocabulary=4, alphabet="nucleotides")
READS = {"one": "ACGTN", "two/1": "", "3": "acgu" * 50, "last": "TTTTTRYGCA"}


def tokens(letters: str) -> list[int]:
    encoder = Nucleotides(5).encoder()
    encoder.feed(letters.encode())
    return [piece.token for piece in encoder.take(len(letters))]


def fasta(reads: dict[str, str], width: int = 7, end: str = "\n") -> str:
    lines = []
    for name, letters in reads.items():
        lines += [f">{name} and more", *(letters[i : i + width] for i in range(0, len(letters), width))]
    return end.join(lines) + end


def fastq(reads: dict[str, str], end: str = "\n") -> str:
    return "".join(f"@{name} x{end}{s}{end}+{end}{'@' * len(s)}{end}" for name, s in reads.items())


def read_all(uri, wanted: Input = DNA, count: int = 5, **options) -> dict[str, list[int]]:
    with open_source(str(uri), Request(wanted, **options)) as source:
        return {name: items.tolist() for name, items in records(source, count)}


EXPECTED = {name: tokens(letters) for name, letters in READS.items()}


@pytest.mark.parametrize("count", [1, 5, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("make", [fasta, fastq])
def test_reads_from_files_and_pipes(tmp_path, monkeypatch, make, end, count):
    data = make(READS, end=end).encode()
    path = tmp_path / f"reads.{make.__name__}"
    path.write_bytes(data)
    assert read_all(path, count=count) == EXPECTED
    give_stdin(monkeypatch, data)
    assert read_all("-", count=count) == EXPECTED
    packed = gzip.compress(data[:50]) + gzip.compress(data[50:])
    (tmp_path / "reads.fq.gz").write_bytes(packed)
    assert read_all(tmp_path / "reads.fq.gz", format=make.__name__, count=count) == EXPECTED
    (tmp_path / "no_suffix").write_bytes(packed)
    assert read_all(tmp_path / "no_suffix", format=make.__name__, count=count) == EXPECTED
    give_stdin(monkeypatch, packed)
    assert read_all("-", count=count) == EXPECTED


def test_reads_are_told_by_their_first_byte(tmp_path):
    (tmp_path / "a.txt").write_text(fasta(READS))
    assert read_all(tmp_path / "a.txt") == EXPECTED
    (tmp_path / "a.txt").write_text(fastq(READS))
    assert read_all(tmp_path / "a.txt") == EXPECTED
    with open_source(str(tmp_path / "a.txt"), Request(BYTES)) as source:  # may be any text
        assert source.record is None
        assert bytes(source.read(4).tolist()) == b"@one"
    as_bytes = read_all(tmp_path / "a.txt", BYTES, format="fastq")
    assert bytes(as_bytes["last"]) == b"TTTTTRYGCA"


def write_bam(path, reads: dict[str, str], seed: int = 0, mode: str = "wb") -> None:
    """Reads as alignments, some to the other strand, some twice."""
    rng = random.Random(seed)
    header = pysam.AlignmentHeader.from_dict({"HD": {"VN": "1.6"}, "SQ": [{"SN": "chr1", "LN": 10_000}]})
    with pysam.AlignmentFile(str(path), mode, header=header) as file:
        for name, letters in reads.items():
            for flag in (0, 0x100, 0x800):
                read = pysam.AlignedSegment(header)
                read.query_name, read.flag = name, flag | (0x10 if rng.random() < 0.5 else 0x4)
                if flag and not letters:
                    continue
                complement = str.maketrans("ACGTRY", "TGCAYR")
                plain = letters.upper().replace("U", "T")
                read.query_sequence = plain.translate(complement)[::-1] if read.flag & 0x10 else plain
                read.reference_id, read.reference_start = (0, 100) if read.flag & 0x10 else (-1, -1)
                if read.flag & 0x10 and plain:
                    read.cigarstring = f"{len(plain)}M"
                file.write(read)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_bam(tmp_path, monkeypatch, count):
    write_bam(tmp_path / "a.bam", READS)
    assert read_all(tmp_path / "a.bam", count=count) == EXPECTED
    give_stdin(monkeypatch, (tmp_path / "a.bam").read_bytes())
    assert read_all("-", count=count) == EXPECTED
    write_bam(tmp_path / "a.sam", READS, mode="w")
    assert read_all(tmp_path / "a.sam", count=count) == EXPECTED


def test_cram(tmp_path):
    reads = {name: letters for name, letters in READS.items() if letters}
    header = {"HD": {"VN": "1.6"}, "RG": [{"ID": "x"}]}
    with pysam.AlignmentFile(str(tmp_path / "a.cram"), "wc", header=header) as file:
        for name, letters in reads.items():
            read = pysam.AlignedSegment(file.header)
            read.query_name, read.flag = name, 0x4 | 0x1 | 0x40
            read.query_sequence = letters.upper().replace("U", "T")
            file.write(read)
    assert read_all(tmp_path / "a.cram") == {f"{name}/1": EXPECTED[name] for name in reads}


@given(cut=st.integers(0, 10_000), place=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_no_damaged_bam_breaks_out_of_the_typed_errors(tmp_path_factory, cut, place, value):
    path = tmp_path_factory.getbasetemp() / "damaged.bam"
    write_bam(path, READS)
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[place % len(data)] = value
    path.write_bytes(gzip.compress(bytes(data[: cut % len(data) + 1 or None]), mtime=0, compresslevel=1))
    with pytest.raises(StreamSSMError):  # at the latest, the mark of its end is missing
        read_all(path, format="bam", on_bad="skip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.fasta", "", "is empty"),
        ("a.fasta", "\n\n", "holds no reads"),
        ("a.fasta", "ACGT\n", "does not start like FASTA"),
        ("a.fasta", ">a\nACGT\nAC-T\n", r"read a has '-' at base 6, unknown to the model; .*--on-bad skip"),
        ("a.fastq", "ACGT\n", "read 1, line 1: @ is due, there is b'ACGT'"),
        ("a.fastq", "@a\nAC\n+\nII\n@b\nACGT\nIIII\n+\n", "read 2, line 5: . is due two lines on"),
        ("a.fastq", "@a\nACGT\n+\nII\n", "read 1, line 1: 4 letters have 2 qualities"),
        ("a.fastq", "@a\nACGT\n+\n", "read 1, line 1 is truncated: the file ends inside it"),
        ("a.bam", "BAM\1", "holds no reads|does not start like BAM|damaged"),
        ("a.bam", "text", "does not start like BAM"),
        ("a.cram", "text", "cannot be read as alignments"),
    ],
)
def test_bad_reads(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_all(tmp_path / name)


def test_a_model_of_other_tokens_takes_no_reads(tmp_path, monkeypatch):
    (tmp_path / "a.fasta").write_text(">a\nAC\n")
    with pytest.raises(
        SourceError, match="reads need a model of nucleotides or bytes; this one takes tokens"
    ):
        read_all(tmp_path / "a.fasta", IDS, format="fasta")
    give_stdin(monkeypatch, b">a\nAC\n")
    with pytest.raises(SourceError, match="standard input cannot carry cram"):
        read_all("-", format="cram")
    monkeypatch.setitem(__import__("sys").modules, "pysam", None)
    with pytest.raises(SourceError, match=r"needs pysam; pip install 'streamssm\[genomics\]'"):
        read_all(tmp_path / "a.fasta", format="cram")


@pytest.mark.parametrize("count", [1, 4, 100])
def test_damaged_reads_and_unknown_letters_are_left_out(tmp_path, count):
    good = fastq({"a": "ACGT"}), fastq({"b": "GG"}), fastq({"c": "TA"})
    bad = "@x\nACGT\nIIII\n@@@@\n", "noise\n\nmore noise\n", "@y\nAC\n+\nI\n"
    path = tmp_path / "a.fastq"
    path.write_text(good[0] + bad[0] + good[1] + bad[1] + bad[2] + good[2])
    with pytest.raises(SourceError, match="read 2, line 5"):
        read_all(path)
    assert read_all(path, on_bad="skip", count=count) == {"a": [0, 1, 2, 3], "b": [2, 2], "c": [3, 0]}
    assert "read 2, line 5: + is due two lines on" in notes_of(path, DNA, on_bad="skip")


@pytest.mark.parametrize("count", [1, 4, 100])
def test_unknown_letters_are_gaps(tmp_path, count):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nACNNGT\nNN\n>b\nNNN\n>c\nN-A\n")
    found = {"a": "", "b": "", "c": ""}
    with open_source(str(path), Request(NO_N, on_bad="skip")) as source:
        more = True
        while more:
            items = source.read(count)
            if source.record is not None:
                found[source.record] += "".join(f"({gap.items})" for gap in source.gaps)
                found[source.record] += "".join("ACGT"[token] for token in items)
            more = len(items) or source.more
    assert found == {"a": "AC(2)GT(2)", "b": "(3)", "c": "(2)A"}


@given(
    reads=st.lists(st.text("ACGT", max_size=40), min_size=1, max_size=6),
    noise=st.binary(max_size=60),
    place=st.integers(0, 300),
    kind=st.sampled_from(["fasta", "fastq"]),
)
@settings(max_examples=150, deadline=None)
def test_no_noise_breaks_out_of_the_typed_errors(tmp_path_factory, reads, noise, place, kind):
    path = tmp_path_factory.getbasetemp() / f"noise.{kind}"
    make = fasta if kind == "fasta" else fastq
    data = make({str(n): s for n, s in enumerate(reads)}).encode()
    place %= len(data)
    path.write_bytes(data[:place] + noise + data[place:])
    for policy in ("refuse", "skip"):
        with contextlib.suppress(SourceError):
            read_all(path, on_bad=policy)


def test_a_long_sequence_on_one_line_is_not_held(tmp_path):
    length = 3_000_001
    bases = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, length)]
    path = tmp_path / "chromosome.fa"
    path.write_bytes(b">chr1\n" + bases.tobytes() + b"\n>chr2\nAC\n")
    with open_source(str(path), Request(DNA)) as source:
        assert [(name, len(items)) for name, items in records(source, 1000)] == [
            ("chr1", length),
            ("chr2", 2),
        ]
        assert len(source._parser._stream._buffer) < 1 << 17


@pytest.mark.parametrize("kind", ["fasta", "fastq", "bam"])
def test_skipping_reads_and_letters(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "bam":
        write_bam(path, READS)
    else:
        path.write_text((fasta if kind == "fasta" else fastq)(READS))
    with open_source(str(path), Request(DNA)) as source:
        assert source.replayable
        source.skip_record()
        assert (source.record, source.more) == ("one", True)
        source.skip_record()
        source.skip(100)
        assert source.record == "3"
        assert records(source, 1000)[0][1].tolist() == EXPECTED["3"][100:]


def test_a_truncated_bam_is_told_at_its_end(tmp_path):
    reads = {str(n): "ACGT" * 2000 for n in range(60)}
    write_bam(tmp_path / "a.bam", reads)
    data = (tmp_path / "a.bam").read_bytes()
    (tmp_path / "a.bam").write_bytes(data[:-28])  # without the empty block that ends it
    found = []
    with (
        open_source(str(tmp_path / "a.bam"), Request(DNA)) as source,
        pytest.raises(SourceError, match="ends without the mark of a complete file"),
    ):
        found.extend(iter(lambda: len(source.read(10_000)), None))
    assert sum(found) == 60 * 8000
