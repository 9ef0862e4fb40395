# ruff: noqa: D103
"""python -m pytest examples/genomics: the pieces of ablation.py and limits.py; needs no genomes."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import limits
import numpy as np
import pytest
import torch
from ablation import KNOWN, known, recipe
from export_model import export_checkpoint
from genomes import RECODED, DataError, Genomes, joined
from host_model import HOP, build, load, save
from host_sources import HUMAN, SOURCES
from host_training import TrainConfig, Trainer, read_config
from reads import ErrorConfig, ReadSimulator
from test_genomics import CPU, NO_ERRORS, SMALL, random_bases
from testreads import ReadSet

HERE = Path(__file__).resolve().parent


def of_train() -> Genomes:
    return joined({HUMAN: [random_bases(5_000, 1)], "vibrio": [random_bases(4_000, 2)]})


def of_test() -> Genomes:
    pieces = {group: [random_bases(3_000, seed)] for seed, group in enumerate(KNOWN, 4)}
    return joined({HUMAN: [random_bases(6_000, 3)]} | pieces)


def test_a_stutter_says_a_short_unit_over_and_over() -> None:
    errors = replace(NO_ERRORS, p_stutter=0.3)
    genome = torch.full((4_000, 200), 7)  # what no unit has
    found = ReadSimulator(errors, CPU, 0).stuttering(genome)
    said = found != 7
    assert 0.27 < said.any(1).float().mean() < 0.33
    for row, inside in zip(found[said.any(1)], said[said.any(1)], strict=True):
        run = row[inside]
        assert inside.nonzero().diff(dim=0).eq(1).all()  # one run
        assert any(torch.equal(run[period:], run[:-period]) for period in range(1, errors.stutter + 1))
    assert 0.45 < said[said.any(1)][:, 0].float().mean() < 0.6  # half of them from the first base on


def test_stutters_come_to_both_classes_alike() -> None:
    from reads import Reads

    reads = Reads(of_train(), {"vibrio": 1.0}, replace(NO_ERRORS, p_stutter=0.5), CPU, 0)
    plain = Reads(of_train(), {"vibrio": 1.0}, NO_ERRORS, CPU, 0)
    bases, labels = reads.batch(2_000, 100)
    assert torch.equal(plain.batch(2_000, 100)[1], labels)
    same = (bases[:, 4:] == bases[:, :-4]).float().mean(1)
    shares = [(same[labels == label] > 0.9).float().mean().item() for label in (0, 1)]
    assert min(shares) > 0.05
    assert abs(shares[0] - shares[1]) < 0.04


@pytest.mark.parametrize("know", ["microbes", "both"])
def test_known_genomes_stand_beside_those_of_train(know: str) -> None:
    train, test = of_train(), of_test()
    found = known(train, test, know)
    assert found.groups == (HUMAN, "vibrio", *KNOWN)
    np.testing.assert_array_equal(found.of(HUMAN), (test if know == "both" else train).of(HUMAN))
    for group in KNOWN:
        np.testing.assert_array_equal(found.of(group), test.of(group))
    weights = recipe(TrainConfig()).weights
    assert sum(weights.values()) == pytest.approx(1)
    assert {group: weights[group] for group in KNOWN} == KNOWN


def test_no_recipe_of_the_built_in_model_knows_test() -> None:
    test = {part.group for source in SOURCES for part in source.parts if part.split == "test"}
    assert set(KNOWN) <= test
    recipes = [*HERE.glob("*.toml")]
    assert len(recipes) >= 2
    for path in recipes:
        groups = {group.removesuffix(RECODED) for group in read_config(path)[1].weights}
        assert not groups & test


def test_training_begins_again_with_other_genomes(tmp_path) -> None:
    for name in ("train", "valid"):
        of_train().save(tmp_path / f"{name}.npz")
    args = Namespace(data=tmp_path, out=tmp_path, device="cpu", fast=False, compile=False, seconds=None)
    args.hold_out = []
    config = TrainConfig(steps=2, batch=4, valid_every=9, valid_reads=8, weights={"vibrio": 1.0})
    save(tmp_path / "start.pt", build(SMALL), SMALL, step=5)
    trainer = Trainer(SMALL, config, ErrorConfig(), args)
    trainer.begin_with(tmp_path / "start.pt")
    trainer.run()
    own = Namespace(**vars(args) | {"out": tmp_path / "known"})
    own.out.mkdir()
    first = load(tmp_path / "best.pt")[0].state_dict()
    trainer.begin_again(known(of_train(), of_test(), "both"), recipe(config), own)
    assert (trainer.before, trainer.step) == (7, 0)
    assert trainer.reads.groups == [HUMAN, "vibrio", *KNOWN]
    for name, weight in trainer.network.state_dict().items():
        assert torch.equal(weight, first[name])
    trainer.run()
    assert load(tmp_path / "best.pt")[2]["step"] == 7
    assert load(own.out / "best.pt")[2]["step"] == 9
    with pytest.raises(DataError, match=r"trained on TEST \(ecoli_reference, lambda_reference\)"):
        export_checkpoint(own.out / "best.pt", tmp_path / "host.onnx", tmp_path / "valid.npz")
    assert not (tmp_path / "host.onnx").exists()


def test_figures_are_means_over_the_pairs_of_a_row() -> None:
    rng = np.random.default_rng(0)
    names = {name for pairs in limits.rows().values() for pair in pairs for name in pair}
    sets = {}
    for name in sorted(names):
        share = 0.9 if name.startswith(HUMAN) else 0.1 if name == "lambda_nanopore" else 0.2
        bases = (rng.random((300, HOP)) < share).astype(np.uint8)
        sets[name] = ReadSet(name, bases, np.arange(300))
    found = limits.figures(lambda bases: bases[:, 0].astype(float), sets)
    assert list(found) == list(limits.rows())
    # one base: human has a 1 in 0.9 of reads, the others in 0.2, one of three in 0.1
    assert found["0.12"]["auc"]["value"] == pytest.approx(0.85, abs=0.03)
    assert found["real"]["auc"]["value"] == pytest.approx((0.85 + 0.85 + 0.90) / 3, abs=0.03)
    low, high = found["real"]["auc"]["interval"]
    assert low < found["real"]["auc"]["value"] < high
    few = limits.figures(lambda bases: np.full(len(bases), float(len(bases))), sets, most=20)
    assert few["real"]["recall_1"]["value"] == 0  # all tie


def test_a_detector_that_is_none_is_refused(tmp_path) -> None:
    args = Namespace(knows=["both=known.pt"], exact=0, only=["host, knows bot"], cache=tmp_path, model="host")
    with pytest.raises(DataError, match=r"no detector 'host, knows bot'; there are host, .*host, knows both"):
        limits.detectors(args, of_test())
    assert list(limits.detectors(Namespace(**vars(args) | {"only": ["host"]}), of_test())) == ["host"]


@pytest.mark.parametrize("make", [limits.nearest_place, limits.both_references])
def test_a_read_is_nearest_to_where_it_comes_from(make) -> None:
    pytest.importorskip("edlib" if make is limits.nearest_place else "mappy")
    test = of_test()
    score = make(test)
    reads = [test.of(group)[500 : 500 + HOP] for group in (HUMAN, *KNOWN)]
    reads += [3 - read[::-1] for read in reads]  # both strands
    signs = np.sign(score(np.stack(reads)))
    assert signs.tolist() == [1, -1, -1] * 2
