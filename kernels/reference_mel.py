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


def log_mel_step(
    frame: Array,
    sample_rate: float,
    n_fft: int,
    n_mels: int,
    f_min: float,
    f_max: float,
    eps: float,
) -> Array:
    """log(mel filters applied to |FFT(Hann * frame)|^2, plus eps) of one frame.

    Args:
        frame: [..., window] samples, oldest first.
        sample_rate: Hz.
        n_fft: length of the FFT; the frame is padded with zeros at its end, which moves the
            phase but not the power.
        n_mels: number of filters.
        f_min: lower edge of the first filter, Hz.
        f_max: upper edge of the last filter, Hz.
        eps: added to the mel power before the natural logarithm.

    Returns:
        [..., n_mels].

    Raises:
        ValueError: n_fft is shorter than the frame, or the mel range is impossible.
    """
    (frame,) = f64(frame)
    window = frame.shape[-1]
    if n_fft < window:
        raise ValueError(f"an FFT of {n_fft} cuts the window of {window} samples; use n_fft >= {window}")
    power = np.abs(np.fft.rfft(hann(window) * frame, n_fft, axis=-1)) ** 2
    return np.log(power @ mel_filters(sample_rate, n_fft, n_mels, f_min, f_max) + eps)


def log_mel(
    x: Array,
    sample_rate: float,
    window: int,
    hop: int,
    n_fft: int,
    n_mels: int,
    f_min: float,
    f_max: float,
    eps: float,
) -> Array:
    """Log-mel frames of a stream from its start.

    Frame t is the ``window`` samples that end at sample hop * (t + 1), exclusive: it sees
    nothing later, and zeros before the start. Samples that do not fill a hop are left.

    Args:
        x: [B, S] samples.
        sample_rate: Hz.
        window: samples in a frame.
        hop: samples from one frame to the next.
        n_fft: see :func:`log_mel_step`, as are the rest.
        n_mels: number of filters.
        f_min: lower edge of the first filter, Hz.
        f_max: upper edge of the last filter, Hz.
        eps: added to the mel power before the natural logarithm.

    Returns:
        [B, S // hop, n_mels].
    """
    (x,) = f64(x)
    T = x.shape[1] // hop
    # `window` zeros stand before sample 0, so that frame t starts at index hop * (t + 1).
    padded = np.concatenate([np.zeros((len(x), window)), x], axis=1)
    starts = hop * (np.arange(T) + 1)
    frames = padded[:, starts[:, None] + np.arange(window)]
    return log_mel_step(frames, sample_rate, n_fft, n_mels, f_min, f_max, eps)
