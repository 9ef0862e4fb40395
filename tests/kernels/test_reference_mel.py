"""The log-mel reference: framing, causality, and the HTK filters against another form of the formula."""

from __future__ import annotations

import numpy as np
import pytest

from streamssm.kernels import reference as ref

N_FFT, EPS = 32, 1e-6


def arguments(window: int) -> dict:
    return {
        "window": ref.hann(window),
        "filters": ref.mel_filters(8000, N_FFT, 5, 100.0, 3800.0),
        "n_fft": N_FFT,
        "eps": EPS,
    }


@pytest.mark.parametrize(("window", "hop", "past"), [(20, 8, 16), (20, 8, 12), (32, 32, 0), (16, 24, 0)])
def test_log_mel_frame_ends_at_its_hop(window, hop, past):
    x = np.random.default_rng(0).normal(size=(2, 5 * hop))
    before = np.random.default_rng(1).normal(size=(2, past))
    y, after = ref.log_mel(x, **arguments(window), past=before, hop=hop)
    assert y.shape == (2, 5, 5)
    full = np.concatenate([before, x], axis=1)
    np.testing.assert_array_equal(after, full[:, 5 * hop :])
    for t in range(5):
        frame = full[:, : past + hop * (t + 1)][:, -window:]
        np.testing.assert_allclose(y[:, t], ref.log_mel_step(frame, **arguments(window)), rtol=1e-12)
        late = x.copy()
        late[:, hop * (t + 1) :] = np.nan
        found, _ = ref.log_mel(late, **arguments(window), past=before, hop=hop)
        np.testing.assert_array_equal(found[:, : t + 1], y[:, : t + 1])


def test_log_mel_of_nothing_is_empty():
    past = np.ones((2, 16))
    y, after = ref.log_mel(np.zeros((2, 0)), **arguments(20), past=past, hop=8)
    assert y.shape == (2, 0, 5)
    np.testing.assert_array_equal(after, past)


def test_log_mel_of_silence_is_log_eps():
    y, _ = ref.log_mel(np.zeros((1, 16)), **arguments(20), past=np.zeros((1, 16)), hop=8)
    np.testing.assert_allclose(y, np.full((1, 2, 5), np.log(EPS)), rtol=1e-12)


def test_mel_filters_are_htk_triangles():
    filters = ref.mel_filters(16000, 512, 40, 20.0, 8000.0)
    bins = np.arange(257) * 16000 / 512

    def mel(f):
        return 1127.0 * np.log1p(f / 700.0)  # the natural-logarithm form, 2595 / ln 10 = 1127

    place = (mel(bins) - mel(20.0)) / (mel(8000.0) - mel(20.0)) * 41  # in units of filter spacing
    assert filters.shape == (257, 40)
    for m in range(40):
        inside = np.abs(place - (m + 1)) < 1 - 1e-3
        assert (filters[inside, m] > 0).all()
        assert (filters[np.abs(place - (m + 1)) > 1 + 1e-3, m] == 0).all()
    between_centres = (place >= 1) & (place <= 40)
    np.testing.assert_allclose(
        filters[between_centres].sum(axis=1), np.ones(between_centres.sum()), rtol=1e-12
    )


@pytest.mark.parametrize(("low", "high"), [(100.0, 4001.0), (3900.0, 3800.0)])
def test_impossible_mel_range_is_refused(low, high):
    with pytest.raises(ValueError, match="narrow it"):
        ref.mel_filters(8000, 32, 5, low, high)


def test_impossible_log_mel_is_refused():
    with pytest.raises(ValueError, match="use at least that"):
        ref.log_mel_step(np.zeros((1, 40)), **arguments(40))
    with pytest.raises(ValueError, match="no whole number of hops"):
        ref.log_mel(np.zeros((1, 15)), **arguments(20), past=np.zeros((1, 16)), hop=8)
