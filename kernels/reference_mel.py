"""Log-mel front end: frames, periodic Hann window, power spectrum, HTK mel, natural logarithm.

Letters and conventions: see :mod:`streamssm.kernels.reference`. Float64 throughout.
"""

from __future__ import annotations

import numpy as np

from .reference_ops import Array, f64


def hann(window: int) -> Array:
    """Periodic Hann window, 0.5 - 0.5 cos(2 pi n / window), as torch.hann_window: [window]."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)


def mel_filters(sample_rate: float, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Array:
    """Triangular filters of peak 1 with edges equally spaced in HTK mel, 2595 log10(1 + f / 700).

    Filter m rises from edge m to edge m + 1 and falls to edge m + 2, straight in Hz; no
    normalisation by area. Source: the HTK book, section 5.4 (O'Shaughnessy's formula);
    equal to torchaudio.functional.melscale_fbanks with its defaults.

    Returns:
        [n_fft // 2 + 1, n_mels]. A filter narrower than the spacing of the bins may be all zero.

    Raises:
        ValueError: not 0 <= f_min < f_max <= sample_rate / 2.
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"the mel range {f_min} to {f_max} Hz does not lie in 0 to {sample_rate / 2}; narrow it"
        )
    low, high = 2595.0 * np.log10(1.0 + np.array([f_min, f_max]) / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(low, high, n_mels + 2) / 2595.0) - 1.0)
    bins = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def log_mel_step(frame: Array, window: Array, filters: Array, n_fft: int, eps: float) -> Array:
    """log(filters applied to |FFT(window * frame)|^2, plus eps) of one frame.

    Args:
        frame: [..., L] samples, oldest first.
        window: [L] weights of the samples, such as :func:`hann`.
        filters: [n_fft // 2 + 1, M], such as :func:`mel_filters`.
        n_fft: length of the FFT; the frame is padded with zeros at its end, which moves the
            phase but not the power.
        eps: added to the mel power before the natural logarithm.

    Returns:
        [..., M].

    Raises:
        ValueError: n_fft is shorter than the frame.
    """
    frame, window, filters = f64(frame, window, filters)
    if n_fft < len(window):
        raise ValueError(f"an FFT of {n_fft} cuts the window of {len(window)} samples; use at least that")
    power = np.abs(np.fft.rfft(window * frame, n_fft, axis=-1)) ** 2
    return np.log(power @ filters + eps)


def log_mel(
    x: Array, window: Array, filters: Array, past: Array, hop: int, n_fft: int, eps: float
) -> tuple[Array, Array]:
    """Log-mel frames of a stream, T samples of it.

    Frame f is the L samples that end at sample hop * (f + 1) of x, exclusive: it sees nothing
    later, and `past` before the start. Its spectrum is a product with the Fourier matrix here.

    Args:
        x: [B, T] samples, T a multiple of hop.
        window: [L] weights of the samples of a frame.
        filters: [n_fft // 2 + 1, M].
        past: [B, P] the samples before x, P >= L - hop.
        hop: samples from one frame to the next.
        n_fft: see :func:`log_mel_step`.
        eps: added to the mel power before the natural logarithm.

    Returns:
        y [B, T / hop, M] and the next past [B, P].

    Raises:
        ValueError: T is not a multiple of hop.
    """
    x, window, filters, past = f64(x, window, filters, past)
    T, L, P = x.shape[1], len(window), past.shape[1]
    if T % hop:
        raise ValueError(f"{T} samples are no whole number of hops of {hop}")
    full = np.concatenate([past, x], axis=1)
    starts = P + hop * (np.arange(T // hop) + 1) - L
    frames = full[:, starts[:, None] + np.arange(L)] * window
    # indices are reduced to one turn before they become an angle, which would lose digits
    turns = np.outer(np.arange(L), np.arange(n_fft // 2 + 1)) % n_fft / n_fft
    power = np.abs(frames @ np.exp(-2j * np.pi * turns)) ** 2
    return np.log(power @ filters + eps), full[:, T:]
