"""What befalls sound on its way, and noise that no recording holds: torch functions on any device.

Letters: B rows, S samples. An effect takes x [B, S] and a generator, and returns [B, S].
"""

from __future__ import annotations

import math

import torch
from dataset import RATE
from torch import Generator, Tensor
from torch.nn.functional import interpolate


def uniform(rows: int, low: float, high: float, rng: Generator) -> Tensor:
    """Draws from [low, high), one a row [B, 1]."""
    return low + (high - low) * torch.rand(rows, 1, generator=rng, device=rng.device)


def gain(rows: int, low_db: float, high_db: float, rng: Generator) -> Tensor:
    """Factors of a range in decibels, one a row [B, 1]."""
    return 10 ** (uniform(rows, low_db, high_db, rng) / 20)


def unit(x: Tensor) -> Tensor:
    """Each row scaled to unit power; silent rows stay silent."""
    return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)


def _normal(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, device=rng.device)


def _curve(rows: int, bins: int, points: int, spread_db: float, rng: Generator) -> Tensor:
    """A smooth random gain over frequency [B, bins]."""
    knots = _normal(rng, rows, 1, points) * spread_db
    return 10 ** (interpolate(knots, size=bins, mode="linear", align_corners=True)[:, 0] / 20)


def _band(bins: int, low: Tensor, high: Tensor) -> Tensor:
    """A band limit with soft edges between `low` and `high` Hz [B, 1]."""
    f = torch.linspace(0, RATE / 2, bins, device=low.device)[None]
    return torch.sigmoid((f - low) / (0.15 * low + 5)) * torch.sigmoid((high - f) / 150)


def _filter(x: Tensor, response: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * response, n=x.shape[1])


def colour(x: Tensor, rng: Generator) -> Tensor:
    """A random equaliser and band limit."""
    rows, bins = len(x), x.shape[1] // 2 + 1
    band = _band(bins, uniform(rows, 5, 250, rng), uniform(rows, 3200, 9000, rng))
    return _filter(x, band * _curve(rows, bins, 9, 4.0, rng))


def phone(x: Tensor, rng: Generator) -> Tensor:
    """300 to 3400 Hz in 8-bit mu-law."""
    edge = torch.ones(len(x), 1, device=x.device)
    return mulaw(_filter(x, _band(x.shape[1] // 2 + 1, 300 * edge, 3400 * edge)), rng)


def mulaw(x: Tensor, rng: Generator) -> Tensor:
    """8-bit mu-law and back."""
    top = x.abs().amax(1, keepdim=True).clamp(min=1e-6) * 1.2
    y = torch.sign(x) * torch.log1p(255 * x.abs() / top) / math.log(256)
    y = torch.round(y * 127) / 127
    return torch.sign(y) * (torch.expm1(y.abs() * math.log(256)) / 255) * top


def coded(x: Tensor, rng: Generator) -> Tensor:
    """As a transform codec at a low rate leaves it: weak bins gone, the others rounded in decibels."""
    window = torch.hann_window(512, device=x.device)
    bins = torch.stft(x, 512, 256, window=window, return_complex=True)  # [B, 257, frames]
    size = bins.abs().clamp(min=1e-9)
    near = size.amax(1, keepdim=True) * gain(len(x), -50, -25, rng)[..., None]
    step = uniform(len(x), 0.1, 0.5, rng)[..., None]
    rounded = torch.exp(torch.round(torch.log(size) / step) * step)
    return torch.istft(bins / size * rounded * (size > near), 512, 256, window=window, length=x.shape[1])


def room(x: Tensor, rng: Generator) -> Tensor:
    """Direct sound plus exponentially decaying noise, 0.1 to 0.6 s, without added delay."""
    rows, size = len(x), RATE * 6 // 10
    time = torch.arange(size, device=x.device)[None] / RATE
    tail = _normal(rng, rows, size) * torch.exp(-6.9 * time / uniform(rows, 0.1, 0.6, rng))
    tail[:, : RATE // 400] = 0
    tail = tail / tail.norm(dim=1, keepdim=True) * gain(rows, -18, 0, rng)
    tail[:, 0] = 1
    full = -(-(x.shape[1] + size) // 4096) * 4096
    wet = torch.fft.irfft(torch.fft.rfft(x, n=full) * torch.fft.rfft(tail, n=full), n=full)
    return wet[:, : x.shape[1]]


def clip(x: Tensor, rng: Generator) -> Tensor:
    """Cut off above a share of the peak."""
    limit = x.abs().amax(1, keepdim=True) * uniform(len(x), 0.2, 0.9, rng)
    return torch.minimum(torch.maximum(x, -limit), limit)


def synthetic(rows: int, samples: int, rng: Generator) -> Tensor:
    """Coloured noise or a made-up engine whose level wanders, each row of unit power [B, S]."""
    coloured = uniform(rows, 0, 1, rng) < 0.5
    made = torch.where(coloured, _coloured(rows, samples, rng), _engine(rows, samples, rng))
    return unit(made * _slow_gain(rows, samples, rng))


def _coloured(rows: int, samples: int, rng: Generator) -> Tensor:
    """Noise with a spectrum of f^-slope (-0.5 to 2) and random bumps."""
    bins = samples // 2 + 1
    f = torch.linspace(0, 1, bins, device=rng.device)[None] + 2e-3
    shape = f ** (-uniform(rows, -0.25, 1.0, rng)) * _curve(rows, bins, 12, 6.0, rng)
    return _filter(_normal(rng, rows, samples), shape)


def _engine(rows: int, samples: int, rng: Generator) -> Tensor:
    """A drifting harmonic tone with random overtones, and noise pulsing at its rate."""
    knots = _normal(rng, rows, 1, 2 + samples // RATE)
    drift = interpolate(knots, size=samples, mode="linear")[:, 0]
    pitch = 10 ** uniform(rows, 0.7, 2.6, rng) * (1 + 0.08 * drift)
    phase = 2 * torch.pi * torch.cumsum(pitch.double() / RATE, 1)
    tones = torch.zeros(rows, samples, device=rng.device)
    for k in range(1, 13):
        strength = _normal(rng, rows, 1).abs() / k**0.5 * (pitch * k < RATE / 2.2)
        tones += strength * torch.sin(k * phase).float()
    pulse = (0.5 + 0.5 * torch.sin(phase).float()) ** 4
    return unit(tones) + unit(pulse * _coloured(rows, samples, rng)) * gain(rows, -20, 10, rng)


def _slow_gain(rows: int, samples: int, rng: Generator) -> Tensor:
    depth = uniform(rows, 0, 8, rng)
    knots = _normal(rng, rows, 1, 2 + samples // (RATE // 2))
    return 10 ** (interpolate(knots, size=samples, mode="linear")[:, 0] * depth / 20)
