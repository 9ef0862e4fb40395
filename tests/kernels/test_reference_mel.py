"""The log-mel reference: framing, causality, and the HTK filters against another form of the formula."""

from __future__ import annotations

import numpy as np
import pytest

from streamssm.kernels import reference as ref

MEL = {"sample_rate": 8000, "n_fft": 32, "n_mels": 5, "f_min": 100.0, "f_max": 3800.0, "eps": 1e-6}


@pytest.mark.parametrize(("window", "hop"), [(20, 8), (32, 32), (16, 24)])
def test_log_mel_frame_ends_at_its_hop(window, hop):
    x = np.random.default_rng(0).normal(size=(2, 5 * hop + 3))
    y = ref.log_mel(x, window=window, hop=hop, **MEL)
    assert y.shape == (2, 5, 5)
    for t in range(5):
        seen = np.concatenate([np.zeros((2, window)), x[:, : hop * (t + 1)]], axis=1)
        np.testing.assert_allclose(y[:, t], ref.log_mel_step(seen[:, -window:], **MEL), rtol=1e-12)
        late = x.copy()
        late[:, hop * (t + 1) :] = np.nan
        np.testing.assert_array_equal(
            ref.log_mel(late, window=window, hop=hop, **MEL)[:, : t + 1], y[:, : t + 1]
        )


@pytest.mark.parametrize("samples", [0, 7])
def test_log_mel_of_less_than_a_hop_is_empty(samples):
    assert ref.log_mel(np.zeros((2, samples)), window=20, hop=8, **MEL).shape == (2, 0, 5)


def test_log_mel_of_silence_is_log_eps():
    np.testing.assert_allclose(
        ref.log_mel(np.zeros((1, 16)), window=20, hop=8, **MEL), np.full((1, 2, 5), np.log(1e-6)), rtol=1e-12
    )


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


@pytest.mark.parametrize(
    ("change", "message"),
    [({"f_max": 4001.0}, "narrow it"), ({"f_min": 3900.0}, "narrow it"), ({"n_fft": 16}, "use n_fft >= 20")],
)
def test_impossible_log_mel_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ref.log_mel(np.zeros((1, 16)), window=20, hop=8, **(MEL | change))
