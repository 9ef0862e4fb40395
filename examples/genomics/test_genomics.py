# ruff: noqa: D103
"""python -m pytest examples/genomics: needs no genomes and no peers."""

from __future__ import annotations

import gzip
import itertools
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import calibrate
import deplete
import fast_dual
import numpy as np
import pytest
import torch
from adapters import ADAPTERS, bank
from genomes import CODES, DataError, Genomes, fasta, joined, noise, with_recoded
from host_model import HOP, ModelConfig, build, load, rescale, save
from host_peers import KmerRegression, kmers, letters
from host_sources import HUMAN_TEST, HUMAN_TRAIN, HUMAN_VALID, SOURCES
from host_training import TrainConfig, Trainer, learning_rate, read_config
from intervals import Clusters, Comparison
from reads import UNKNOWN, ErrorConfig, Reads, ReadSimulator, room
from recode import _AMINO, genes, recoded
from testreads import LENGTH, SKIP, fragments

import streamssm
from streamssm.export.metrics import roc_auc
from streamssm.export.ops import causal_conv1d, state_space_dual

CPU = torch.device("cpu")
SMALL = ModelConfig(d_model=8, stem=8, layers=2, d_state=4, headdim=8)
NO_ERRORS = ErrorConfig(rate=(0.0, 0.0), p_clean=0.0, p_rough=0.0)
HERE = Path(__file__).resolve().parent


def random_bases(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, n).astype(np.uint8)


def small_genomes() -> Genomes:
    at_rich = (random_bases(6_000, 1) % 2 * 3).astype(np.uint8)  # A and T alone
    return joined({"human": [at_rich], "coli": [random_bases(5_000, 2)], "other": [random_bases(3_000, 3)]})


def test_genomes_survive_two_bits(tmp_path) -> None:
    genomes = small_genomes()
    genomes.save(tmp_path / "a.npz")
    again = Genomes.load(tmp_path / "a.npz")
    assert again.groups == genomes.groups
    for group in genomes.groups:
        np.testing.assert_array_equal(again.of(group), genomes.of(group))


def test_fasta_gives_the_letters_of_each_sequence() -> None:
    first, second = fasta(b">a one\nACGT\nnA\n>b\nTT\n")
    assert first.tolist() == [0, 1, 2, 3, 4, 0]
    assert second.tolist() == [3, 3]


@pytest.mark.parametrize("strand", [1, -1])
def test_recoding_keeps_frames_open(strand: int) -> None:
    rng = np.random.default_rng(0)
    codons = rng.choice(np.flatnonzero(_AMINO[48] != _AMINO), 400)  # 48 is TAA, a stop
    gene = np.stack([codons >> 4, codons >> 2 & 3, codons & 3], 1).ravel()
    stop = [3, 0, 0]
    genome = np.concatenate([stop, gene, stop]).astype(np.uint8)
    genome = 3 - genome[::-1] if strand < 0 else genome
    assert (3, 1203, strand < 0) in genes(genome)
    new = recoded(genome, rng)
    new = 3 - new[::-1] if strand < 0 else new
    after = new[3:1203].reshape(-1, 3).astype(int) @ [16, 4, 1]
    kept = (_AMINO[after] == _AMINO[codons]).mean()
    assert kept > 0.6  # the others became similar ones
    assert (after != codons).mean() > 0.3
    assert (_AMINO[after] != _AMINO[48]).all()


def test_every_group_of_bacteria_is_recoded_differently_each_time() -> None:
    genomes = joined({"human": [random_bases(900)], "vibrio": [random_bases(9_000, 1)]})
    found = with_recoded(genomes, 2)
    assert found.groups == ("human", "vibrio", "vibrio~")
    for group in genomes.groups:
        np.testing.assert_array_equal(found.of(group), genomes.of(group))
    first, second = np.split(found.of("vibrio~"), 2)
    assert (first != genomes.of("vibrio")).any()
    assert (first != second).any()
    np.testing.assert_array_equal(with_recoded(genomes, 2).bases, found.bases)


def test_noise_is_bases() -> None:
    bases = noise(np.random.default_rng(0), blocks=3, length=50)
    assert bases.shape == (150,)
    assert bases.max() <= 3


def test_reads_without_errors_are_the_genome() -> None:
    genome = torch.from_numpy(random_bases(4 * room(200)).astype(np.int64)).reshape(4, -1)
    reads = ReadSimulator(NO_ERRORS, CPU, 0).read(genome, 200)
    assert torch.equal(reads, genome[:, :200])


@pytest.mark.parametrize(("kind", "mix"), [("sub", (1, 0, 0)), ("ins", (0, 1, 0)), ("gone", (0, 0, 1))])
def test_errors_come_at_the_stated_rate(kind: str, mix: tuple) -> None:
    errors = ErrorConfig((0.1, 0.1), 0, 0, mix, 0, 0, (0, 0), (0, 0), (0, 1), (0, 0))
    # 0 0 0 ... 1 1 1 ... : where the runs end says how many bases came of the first
    genome = torch.zeros(400, room(200), dtype=torch.int64)
    genome[:, 100:] = 2
    reads = ReadSimulator(errors, CPU, 0).read(genome, 200)
    if kind == "sub":
        rate = (reads != genome[:, :200]).float().mean()
        assert 0.09 < rate < 0.11
    elif kind == "gone":
        assert 88 < (reads == 0).sum(1).float().mean() < 92
    else:
        changed = (reads[:, :100] != 0).float().mean()  # three of four inserted bases differ
        assert 0.055 < changed < 0.08


def test_prefixes_take_the_place_of_the_first_bases() -> None:
    errors = replace(NO_ERRORS, p_prefix=0.5)
    simulator = ReadSimulator(errors, CPU, 0)
    genome = torch.full((2_000, room(100)), UNKNOWN)  # a base that no prefix has
    begun = simulator.begun(genome, torch.from_numpy(bank()))
    length = (begun != UNKNOWN).sum(1)
    place = torch.arange(genome.shape[1])
    assert torch.equal(begun != UNKNOWN, place < length[:, None])
    assert length.max() == errors.prefix
    assert 0.45 < (length > 0).float().mean() < 0.55
    texts = ["".join("ACGT"[base] for base in row[:n]) for row, n in zip(begun.tolist(), length, strict=True)]
    known = "".join("ACGT"[base] for base in bank())
    assert all(adapter in known for adapter in ADAPTERS)
    assert 0.4 < np.mean([text in known for text in texts if len(text) > 20]) < 0.6


def test_unknown_bases_come_singly_in_runs_and_at_the_end() -> None:
    genome = torch.from_numpy(random_bases(1_000 * room(200)).astype(np.int64)).reshape(1_000, -1)
    plain = ReadSimulator(NO_ERRORS, CPU, 0).read(genome, 200)
    for errors, share in ((replace(NO_ERRORS, p_unknown=0.5), 0.1), (replace(NO_ERRORS, p_ended=0.5), 0.25)):
        reads = ReadSimulator(errors, CPU, 0).read(genome, 200)
        gone = reads == UNKNOWN
        assert torch.equal(reads[~gone], plain[~gone])
        assert 0.7 * share < gone.float().mean() < 1.3 * share
    ended = gone[gone.any(1)].long()
    assert (ended.diff(dim=1) >= 0).all()  # nothing follows


def test_batches_are_half_human_and_repeatable() -> None:
    def batches() -> Reads:
        return Reads(small_genomes(), {"coli": 1.0, "other": 0.0}, ErrorConfig(), CPU, 3)

    reads = batches()
    assert reads.groups == ["human", "coli"]
    bases, labels = reads.batch(8, 300)
    assert bases.shape == (8, 300)
    assert labels.tolist() == [1] * 4 + [0] * 4
    again = batches()
    assert torch.equal(again.batch(8, 300)[0], bases)
    state = reads.state()
    following = reads.batch(8, 300)[0]
    again.restore(state)
    assert torch.equal(again.batch(8, 300)[0], following)


def test_fast_forms_are_the_operators() -> None:
    draw = torch.Generator().manual_seed(0)
    B, T, H, P, N = 2, 20, 3, 4, 5

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    inputs = random(B, T, H, P), random(B, T, H).abs(), -random(H).abs()
    inputs = *inputs, random(B, T, 1, N), random(B, T, 1, N), random(H, P)
    zero = torch.zeros(B, H, N, P, dtype=torch.float64)
    found, expected = fast_dual.state_space_dual(*inputs, zero), state_space_dual(*inputs, zero)
    torch.testing.assert_close(found[0], expected[0])
    inputs = random(B, T, 6), random(4, 6), random(6), torch.zeros(B, 3, 6, dtype=torch.float64), True
    torch.testing.assert_close(fast_dual.causal_conv1d(*inputs)[0], causal_conv1d(*inputs)[0])


def test_model_streams_and_survives_saving(tmp_path) -> None:
    network = build(SMALL).eval()
    assert network.hop == HOP
    save(tmp_path / "a.pt", network, SMALL, step=1)
    again, config, notes = load(tmp_path / "a.pt")
    assert (config, notes) == (SMALL, {"step": 1})
    x = torch.from_numpy(random_bases(1_000).astype(np.int64)).reshape(2, 500)
    with torch.inference_mode():
        whole, _ = again(x)
        head, state = network(x[:, :200])
        tail, _ = network(x[:, 200:], state)
    assert whole.shape == (2, 5, 1)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)


def test_calibration_finds_a_wrong_scale(tmp_path) -> None:
    genomes = joined({"human": [small_genomes().of("human")], "staphylococcus": [random_bases(5_000)]})
    genomes.save(tmp_path / "valid.npz")

    def network(bases: torch.Tensor):  # sure of what it cannot know
        return ((bases[:, :100] == 0).float().mean(1) * 80 - 30).expand(4, -1).T[..., None], None

    scale, _ = calibrate.fit(network, tmp_path / "valid.npz", 200)
    assert scale > 0
    trained = build(SMALL).eval()
    x = torch.zeros(1, 100, dtype=torch.int64)
    with torch.inference_mode():
        before = trained(x)[0].clone()
        rescale(trained, 2.0, 0.5)
        torch.testing.assert_close(trained(x)[0], before * 2 + 0.5)


def test_training_learns_and_goes_on(tmp_path) -> None:
    small_genomes().save(tmp_path / "train.npz")
    small_genomes().save(tmp_path / "valid.npz")
    args = Namespace(data=tmp_path, out=tmp_path, device="cpu", fast=False, compile=False)
    args.seconds, args.hold_out = None, []
    config = TrainConfig(
        steps=12, batch=16, long_every=4, lr=0.02, warmup=2, average=0.5, valid_every=12, valid_reads=64
    )
    config = TrainConfig(**{**vars(config), "weights": {"coli": 1.0, "other": 1.0}, "muon": True})
    trainer = Trainer(SMALL, config, ErrorConfig(), args)
    trainer.run()
    _, _, notes = load(tmp_path / "best.pt")
    assert notes["step"] == 12
    assert notes["valid"]["macro_400"] > 0.9
    again = Trainer(SMALL, config, ErrorConfig(), args)
    again.resume()
    assert again.step == 12
    for mine, theirs in zip(again.averaged.parameters(), trainer.averaged.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    another = Trainer(SMALL, replace(config, seed=2), ErrorConfig(), args)
    another.begin_with(tmp_path / "best.pt")
    assert (another.before, another.step) == (12, 0)
    for mine, theirs in zip(another.network.parameters(), trainer.averaged.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    wider = Trainer(replace(SMALL, d_model=16), config, ErrorConfig(), args)
    for wrong in (wider.resume, lambda: wider.begin_with(tmp_path / "best.pt")):
        with pytest.raises(DataError, match="another configuration"):
            wrong()
    (tmp_path / "last.pt").write_bytes(b"cut off")
    for wrong in (wider.resume, lambda: load(tmp_path / "last.pt")):
        with pytest.raises(DataError, match=r"last.pt is no file of torch, or is damaged"):
            wrong()
    torch.save({"config": {"layers": 2, "blocks": 3}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is no checkpoint of the host network"):
        load(tmp_path / "other.pt")


def test_learning_rate_rises_then_falls() -> None:
    config = TrainConfig(warmup=100)
    rates = [learning_rate(config, step, step / 1000) for step in (0, 99, 500, 999)]
    assert rates[0] < rates[1] > rates[2] > rates[3]


def test_unknown_settings_are_refused(tmp_path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[train]\nstep = 3\n")
    with pytest.raises(DataError, match="unexpected keyword argument 'step'"):
        read_config(path)
    path.write_text("[trains]\nsteps = 3\n")
    with pytest.raises(DataError, match="unknown table"):
        read_config(path)
    path.write_text("[train\n")
    with pytest.raises(DataError, match=r"a\.toml"):
        read_config(path)
    assert read_config(HERE / "train.toml")[0].layers


def test_no_species_and_no_megabase_serves_two_splits() -> None:
    splits: dict[str, set[str]] = {}
    for part in (part for source in SOURCES for part in source.parts):
        splits.setdefault(part.group, set()).add(part.split)
    assert all(len(found) == 1 for found in splits.values())
    regions = (HUMAN_TRAIN, HUMAN_VALID, HUMAN_TEST)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(regions))


def test_fragments_skip_adapters_and_do_not_overlap() -> None:
    read = np.arange(SKIP + 2 * LENGTH + 50)
    found = fragments("a", [read, read[:300]])
    assert sorted(found.bases[:, 0].tolist()) == [SKIP, SKIP + LENGTH]
    assert found.read.tolist() == [0, 0]


def test_metrics_count_pairs_and_ties() -> None:
    rng = np.random.default_rng(0)
    p, n = rng.integers(2, 9, 100).astype(float), rng.integers(0, 7, 150).astype(float)
    area, low, high = Comparison(p, n).metrics(np.ones(100), np.ones(150))
    assert area == pytest.approx(roc_auc(np.concatenate([p, n]), [1] * 100 + [0] * 150))
    top = n.max()
    assert low <= high
    assert low == pytest.approx((p > top).mean())
    twice = Comparison(np.concatenate([p, p[:50]]), n).metrics(np.ones(150), np.ones(150))
    w = np.ones(100)
    w[:50] = 2
    assert Comparison(p, n).metrics(w, np.ones(150)) == pytest.approx(twice)


def test_clusters_are_drawn_whole() -> None:
    clusters = Clusters(np.array([5, 5, 7, 7, 9]))
    weights = clusters.weights(np.random.default_rng(1))
    assert weights[0] == weights[1]
    assert weights[2] == weights[3]
    assert clusters.weights(None).tolist() == [1] * 5


def test_kmers_are_counted() -> None:
    bases = CODES[np.frombuffer(b"AAAACNAAAA", np.uint8)][None]
    counts = kmers(bases)
    assert counts[0, 0] == 2  # AAAA
    assert counts[0, 1] == 1  # AAAC
    assert counts.sum() == 3
    assert letters(bases[0]) == "AAAACNAAAA"
    weights = dict.fromkeys((100, 200, 400), np.ones(257))
    assert KmerRegression(weights).scores(random_bases(800).reshape(2, 400)).tolist() == [[98, 198, 398]] * 2


def test_reads_of_users(tmp_path) -> None:
    path = tmp_path / "reads.fastq.gz"
    text = f"@human_a x\r\n{'acgu' * 25}\r\n+\r\n{'@' * 100}\r\n@short\r\nACGT\r\n+\r\n@@@@\r\n"
    path.write_bytes(gzip.compress(text.encode()))
    (read,) = deplete.read_fastq(path)
    assert read.human
    assert read.bases.tolist() == [0, 1, 2, 3] * 25
    for wrong, message in (
        (">a\nACGT\n", "no FASTQ"),
        ("", "no FASTQ"),
        ("@a\nAC\n+\n??\n", "no read of 100"),
    ):
        path.write_text(wrong)
        with pytest.raises(DataError, match=message):
            deplete.read_fastq(path)


def test_a_damaged_manifest_is_said(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    command = [sys.executable, HERE / "fetch.py", "--cache", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "manifest.json is damaged" in done.stderr.splitlines()[-1]


def test_depletion_of_the_sample() -> None:
    reads = deplete.read_fastq(HERE / "reads.fastq")
    args = Namespace(channels=8, threshold=0.9, bases=400, host_share=0.9, minutes=0.25, seed=0)
    found = deplete.simulate(streamssm.load("host"), reads, args)
    without = deplete.simulate(None, reads, args)
    assert without.reads[True, True] == without.reads[False, True] == 0
    assert found.reads[True, True] > 3 * found.reads[False, True]
    assert found.share > without.share
