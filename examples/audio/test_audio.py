# ruff: noqa: D103
"""python -m pytest examples/audio: needs no recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset import HOP, Pool, speech_labels
from mixing import MixConfig, Mixer
from model import ModelConfig, build, load, save
from peers import _spread
from sources import SOURCES
from train import TrainConfig, learning_rate, read_config

from streamssm.export.metrics import roc_auc

CPU = torch.device("cpu")
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


def small_mixer(seed: int = 0, frames: int = 300) -> Mixer:
    return Mixer(small_pool(1, 1), small_pool(2, 0), MixConfig(frames=frames), CPU, seed)


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
def test_mixtures_are_sound_and_repeatable(frames: int) -> None:
    sound, labels = small_mixer(frames=frames).batch(6)
    assert sound.shape == (6, frames * HOP)
    assert labels.shape == (6, frames)
    assert sound.isfinite().all()
    assert sound.abs().max() <= 1
    assert torch.equal(sound, small_mixer(frames=frames).batch(6)[0])


def test_mixer_resumes_where_it_stood() -> None:
    mixer, other = small_mixer(), small_mixer(seed=5)
    mixer.batch(3)
    other.restore(mixer.state())
    assert torch.equal(mixer.batch(3)[0], other.batch(3)[0])


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
    rates = [learning_rate(config, step) for step in (0, 99, 500, 999)]
    assert rates[0] < rates[1] == config.lr > rates[2] > rates[3]


def test_unknown_settings_are_refused(tmp_path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[train]\nstep = 3\n")
    with pytest.raises(Exception, match="unexpected keyword argument 'step'"):
        read_config(path)


def test_blocks_of_a_peer_become_frames() -> None:
    assert _spread([1.0, 2.0], 512, 7).tolist() == [1, 1, 1, 2, 2, 2, 2]


def test_no_file_serves_both_splits() -> None:
    for source in SOURCES:
        kinds = {p.split for p in source.parts}
        assert kinds in ({"train"}, {"test"}) or source.package == "tuxpaint-stamps-default"
    tuxpaint = next(s for s in SOURCES if s.package == "tuxpaint-stamps-default")
    for path in ("/stamps/a_desc_el.ogg", "/stamps/a_desc_fr.ogg", "/stamps/animals/a.ogg"):
        assert len({p.split for p in tuxpaint.parts if p.accepts(path)}) == 1
