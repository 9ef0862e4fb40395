# ruff: noqa: D103
"""Spectra in training: bands masked and warped, and the share of speech as a second target."""

from __future__ import annotations

import torch
from dataset import HOP
from model import ModelConfig, build
from spectra import SecondTarget, mask_band, warp_bands

SMALL = ModelConfig(d_model=8, mlp_hidden=8, blocks=("mamba", "mlp"), d_state=4)


def test_a_masked_band_is_silent_and_the_rest_untouched() -> None:
    torch.manual_seed(0)
    mel = torch.zeros(50, 3, 40)
    masked = mask_band(mel, 0.5)
    rows = (masked != 0).any(2).any(1).float().mean()
    assert 0.2 < rows < 0.8
    assert set(masked.unique().tolist()) == {-13.0, 0.0}


def test_warped_bands_move_and_half_of_the_rows_do_not() -> None:
    torch.manual_seed(0)
    mel = torch.arange(40.0).expand(200, 2, 40)
    torch.testing.assert_close(warp_bands(mel, 0.0), mel)
    moved = warp_bands(mel, 0.1)
    same = (moved == mel).all(2).all(1).float().mean()
    assert 0.3 < same < 0.7
    inner = moved[:, :, 5:35]
    assert (inner - mel[:, :, 5:35]).abs().max() < 0.1 * 35 + 2.1
    unclamped = moved[:, :, 5:33]
    assert (unclamped.diff(dim=2) - 1).abs().max() < 0.1 + 1e-3


def test_the_second_target_is_the_share_of_speech_in_each_band() -> None:
    torch.manual_seed(0)
    second = SecondTarget(build(SMALL), SMALL)
    time = torch.arange(HOP * 20) / 16_000
    low, high = (0.3 * torch.sin(2 * torch.pi * f * time)[None] for f in (300, 5000))
    mask = second.target(low, low + high)[:, 3:]
    assert mask.shape == (1, 17, SMALL.n_mels)
    below, above = (second.front[0].forward(x)[0][:, 3:] > -3 for x in (low, high))
    assert below.any()
    assert above.any()
    assert mask[below].min() > 0.95
    assert mask[above].max() < 0.05
    assert (second.target(0 * low, high) == 0).all()
