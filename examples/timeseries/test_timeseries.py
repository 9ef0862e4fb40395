# ruff: noqa: D103
"""python -m pytest examples/timeseries: needs no recordings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from wrist_batches import AugmentConfig, Batches, rotation
from wrist_data import DataError, Series, windows
from wrist_folds import ask, fold_models, scores, starts
from wrist_mirror import mirrored
from wrist_model import Averages, ModelConfig, WithSquares, build, ensemble, exportable, load, save
from wrist_scores import confusion, f1, furthest, interval, macro_f1
from wrist_training import Member, TrainConfig, Training, schedule

import streamssm
from streamssm.export import verify_contract

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
TINY = {"d_model": 8, "wide": 8, "headdim": 8, "d_state": 4, "mlp_hidden": 8}
SHALLOW = ModelConfig(blocks=("averages",), **TINY)


def some_series(people: int = 3) -> list[Series]:
    rng = np.random.default_rng(0)
    shapes = [
        (label, person, side) for person in range(1, people + 1) for label in range(7) for side in (0, 1)
    ]
    return [Series(rng.standard_normal((300 + 7 * s[0], 6)).astype(np.float32), *s) for s in shapes]


@pytest.mark.parametrize("layer", [Averages(3, (5.0, 50.0)), WithSquares(3)])
def test_layers_keep_the_contract(layer):
    verify_contract(layer)


@pytest.mark.parametrize("blocks", [("averages",), ("mamba2", "mlp")])
def test_networks_give_a_score_at_every_sample_whatever_the_split(blocks):
    network = build(ModelConfig(blocks=blocks, squares=True, **TINY)).eval()
    x = torch.randn(2, 40, 6)
    with torch.inference_mode():
        head, state = network(x[:, :17])
        tail, _ = network(x[:, 17:], state)
        torch.testing.assert_close(torch.cat([head, tail], 1), network(x)[0])


def test_an_ensemble_is_the_mean_and_probabilities_add_up():
    networks = [build(SHALLOW).eval() for _ in range(3)]
    x = torch.randn(2, 30, 6)
    with torch.inference_mode():
        logits = torch.stack([network(x)[0] for network in networks]).mean(0)
        torch.testing.assert_close(ensemble(networks)(x)[0], logits)
        torch.testing.assert_close(exportable(networks)(x)[0].sum(-1), torch.ones(2, 30))


def test_stored_networks_come_back_within_eight_bits(tmp_path):
    network = build(SHALLOW).eval()
    save(tmp_path / "a.npz", {"x/1": network}, SHALLOW, {"step": 3})
    found, config, notes = load(tmp_path / "a.npz")
    assert (config, notes, list(found)) == (SHALLOW, {"step": 3}, ["x/1"])
    for before, after in zip(network.parameters(), found["x/1"].parameters(), strict=True):
        assert (before - after).abs().max() <= before.abs().max() / 127


def test_networks_train_side_by_side_as_if_alone():
    series, config = some_series(), TrainConfig(batch=2, length=40, steps=4)
    members = [Member("a", (1,), 0), Member("b", (2,), 1)]
    training = Training(series, members, SHALLOW, config, AugmentConfig(), CPU)
    before = training.weights["0.weight"].detach().clone()
    losses = [training.one_step(training.progress) for _ in range(2)]
    assert torch.stack(losses).isfinite().all()
    moved = (training.weights["0.weight"] - before).abs().flatten(1).max(1).values
    assert (moved > 0).all()


def test_a_training_resumes_where_it_stood():
    series, config = some_series(), TrainConfig(batch=2, length=40, steps=4)

    def fresh() -> Training:
        return Training(series, [Member("a", (1,))], SHALLOW, config, AugmentConfig(), CPU)

    whole, first, second = fresh(), fresh(), fresh()
    for training in (whole, whole, first):
        training.one_step(0.5)
    second.restore(first.state())
    second.one_step(0.5)
    for name, value in whole.averaged.items():
        torch.testing.assert_close(value, second.averaged[name], msg=name)


@pytest.mark.parametrize(
    ("member", "config", "augment"),
    [
        (Member("a", (2,)), {}, {}),
        (Member("b", (1,)), {}, {}),
        (Member("a", (1,), 0, {"warp": 1.0}), {}, {}),
        (Member("a", (1,)), {"lr": 1.0}, {}),
        (Member("a", (1,)), {}, {"p_mirror": 0.0}),
    ],
)
def test_weights_of_other_folds_are_never_taken(member, config, augment):
    def fresh(members: list[Member], config: dict, augment: dict) -> Training:
        train = TrainConfig(batch=2, length=40, steps=4, **config)
        return Training(some_series(), members, SHALLOW, train, AugmentConfig(**augment), CPU)

    state = fresh([Member("a", (1,))], {}, {}).state()
    for members in ([member], [Member("a", (1,)), Member("b", (2,))]):
        with pytest.raises(DataError, match="--out of its own"):
            fresh(members, config, augment).restore(state)


def test_a_fold_that_is_missing_is_named():
    with pytest.raises(DataError, match="no network of fold 2; there are those of 1"):
        fold_models({"1": [build(SHALLOW)]})


def test_held_out_people_are_never_drawn():
    series = [Series(np.full_like(s.x, s.subject), s.label, s.subject, s.side) for s in some_series()]
    still = AugmentConfig(1.0, 0, 0, 0, 0, 0, 0, 0, 0)
    x, _ = Batches(series, [(1,), (2, 3)], [still] * 2, 50, CPU, 0).draw(64)
    assert set(x[0].unique().tolist()) == {2.0, 3.0}
    assert x[1].unique().tolist() == [1.0]


def test_rotations_are_rotations_and_the_mirror_is_its_own_inverse():
    turn = rotation(torch.randn(5, 3))
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(5, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(5))
    x = np.random.default_rng(0).standard_normal((4, 6))
    assert np.array_equal(mirrored(mirrored(x)), x)
    # w = r x v: of mirrored vectors the mirrored cross product
    r, v = x[0, :3], x[1, :3]
    both = np.concatenate([r, np.cross(r, v)])
    mirrored_v = mirrored(np.concatenate([v, v]))[:3]
    assert np.allclose(mirrored(both)[3:], np.cross(mirrored(both)[:3], mirrored_v))


def test_windows_are_cut_where_they_should_be():
    series = some_series(1)[:3]
    x, labels, number = windows(series, 100)
    assert x.shape[1:] == (100, 6)
    assert np.array_equal(x[1], series[0].x[50:150])
    assert labels.tolist() == [series[n].label for n in number]
    padded, lengths, place = starts(series)
    assert (lengths >= 50).all()
    assert np.array_equal(padded[1, : lengths[1]], series[0].x[50:450])
    assert not padded[1, lengths[1] :].any()
    assert np.bincount(place).tolist() == [(len(one.x) - 50) // 50 + 1 for one in series]


def test_scores_are_those_of_the_definition():
    labels, chosen = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6]), np.array([0, 1, 1, 1, 2, 3, 4, 5, 6])
    assert macro_f1(labels, chosen) == pytest.approx((2 / 3 + 4 / 5 + 5) / 7)
    tables = confusion(labels, chosen, np.array([1, 1, 1, 2, 2, 2, 2, 2, 2]))
    assert f1(tables.sum(0)) == pytest.approx(macro_f1(labels, chosen))
    assert interval(tables, tables) == (0.0, 0.0)


def test_every_score_counts_against_the_bar():
    series = [Series(np.full((500, 6), label, np.float32), label, 1, 0) for label in range(7)]

    def model(x: np.ndarray) -> np.ndarray:  # sees the label; of whole series' first half another, less sure
        answers = np.eye(7, dtype=np.float32)[x[..., 0].astype(int)]
        if x.shape[1] == 500:
            answers[:, :250] = np.roll(answers[:, :250], 1, -1) / 2
        return answers

    found = scores(ask(series, {1: model}, lambda line: None), series)
    assert found == {"1 s": 1.0, "2 s": 1.0, "4 s": 1.0, "8 s": 1.0, "whole": 1.0, "every": 0.5}
    for name in found:
        assert furthest({"float32": found, "int8": found | {name: found[name] - 0.25}}) == 0.25
    assert furthest({"float32": found | {"bytes": 9}, "int8": found | {"bytes": 1}}) == 0


def test_the_schedule_rises_and_falls():
    rates = [schedule(p, 0.1) for p in (0.0, 0.05, 0.1, 0.5, 1.0)]
    assert rates[0] < rates[1] < rates[2] == 1 > rates[3] > rates[4] > 0


def wrist_csv(path: Path, rows: list[int]) -> None:
    x = np.random.default_rng(0).standard_normal((300, 6))
    lines = [",".join([f"{i / 50:.2f}", *(f"{v:.4f}" for v in x[i])]) for i in rows]
    path.write_text("time,ax,ay,az,wx,wy,wz\n" + "\n".join(lines) + "\n")


def test_the_built_in_model_reads_a_table_with_gaps(tmp_path):
    wrist_csv(tmp_path / "a.csv", [*range(100), *range(150, 300)])
    command = [sys.executable, "-m", "streamssm", "run", "wrist", tmp_path / "a.csv", "--time-column", "time"]
    done = subprocess.run([*command, "--emit", "items"], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    gaps = [row for row in rows if "gap" in row]
    assert [(gap["gap"], gap["items"], gap["time"]) for gap in gaps] == [("missing", 50, 2.0)]
    times = [row["time"] for row in rows if "gap" not in row]
    assert times == [i / 50 for i in range(300)]


def test_the_built_in_model_says_what_it_takes():
    manifest = streamssm.load("wrist").manifest
    assert (manifest.input.kind, manifest.input.shape, manifest.input.rate) == ("features", (6,), 50)
    assert manifest.events is not None
    assert manifest.events.every
    assert len(manifest.outputs[0].labels) == 7
