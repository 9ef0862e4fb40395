"""Endless training mixtures, drawn from pools and mixed in torch on the device that trains.

A batch is planned on the CPU (which items, where, how loud: small tables drawn from one seeded
generator) and rendered on the device (gathers, filters, noise). Nothing is ever stored.

Letters: B rows in a batch, T frames in a row, S = T * HOP samples, E events in a row.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from dataset import HOP, RATE, Pool
from torch import Tensor

MAX_EVENTS = 64  # in a row
Event = tuple[int, int, int, float]  # source frame, frame in the row, frames, gain


@dataclass(frozen=True)
class MixConfig:
    """What the mixtures are like; probabilities are per row."""

    frames: int = 1000
    snr_db: tuple[float, float] = (-5.0, 30.0)
    level_db: tuple[float, float] = (-45.0, -12.0)  # of active speech, or of the bed without speech
    jitter_db: float = 5.0  # between utterances of a row
    speed: tuple[float, float] = (0.85, 1.2)  # of speech, pitch and all; one draw for a batch
    p_speed: float = 0.6
    p_no_speech: float = 0.12
    p_no_noise: float = 0.08
    p_sparse: float = 0.3  # noise events with gaps, instead of a continuous bed
    p_synthetic: float = 0.35  # coloured noise or a made-up engine joins in
    p_room: float = 0.3
    p_colour: float = 0.6  # random equaliser on the speech, and another on the mixture
    p_phone: float = 0.1  # 300 to 3400 Hz and 8-bit mu-law
    p_mulaw: float = 0.05
    p_clip: float = 0.05


def fill_row(rng: Random, frames: int, draw, pause) -> list[Event]:
    """Events until a row is full. The row opens at a random point of what went before it.

    `draw()` gives (source frame, frames, gain); `pause()` gives the frames between events.
    """
    plan, at = [], -rng.randrange(300)
    while at < frames and len(plan) < MAX_EVENTS:
        source, length, gain = draw()
        first, last = max(at, 0), min(at + length, frames)
        if last > first:
            plan.append((source + first - at, first, last - first, gain))
        at += length + pause()
    return plan


class PoolOnDevice:
    """A pool's samples and labels on the device, with a planner that draws items from it."""

    def __init__(self, pool: Pool, device: torch.device, balance: float):
        self.device = device
        self.start, self.length = pool.start.tolist(), pool.length.tolist()
        self.level = pool.level.tolist()
        self.audio = torch.from_numpy(pool.audio).to(device)
        self.labels = torch.from_numpy(pool.labels).to(device)
        seconds = np.bincount(pool.group, pool.length, len(pool.groups))
        weight = pool.length / seconds[pool.group] * seconds[pool.group] ** balance
        self.chance = np.cumsum(weight / weight.sum()).tolist()

    def draw(self, rng: Random, longest: int) -> tuple[int, int, float]:
        """(first frame, frames, level in dBFS) of a random crop of a random item."""
        item = min(bisect(self.chance, rng.random()), len(self.chance) - 1)
        length = self.length[item]
        take = min(length, longest)
        offset = rng.randrange(length - take + 1)
        return self.start[item] + offset, take, self.level[item]

    def render(self, plans: list[list[Event]], frames: int) -> tuple[Tensor, Tensor]:
        """Planned events as sound [B, S] and labels [B, T]; from one plan a row."""
        source, gain = (self._send(x) for x in _frame_tables(plans, frames))
        live = source >= 0
        at = source.clamp(min=0)
        samples = at[..., None] * HOP + torch.arange(HOP, device=self.device)
        sound = self.audio[samples].float() * (gain / 32768.0)[..., None]
        return sound.flatten(1), self.labels[at].float() * live

    def _send(self, table: Tensor) -> Tensor:
        """To the device without waiting for what it is doing."""
        if self.device.type == "cuda":
            table = table.pin_memory()
        return table.to(self.device, non_blocking=True)


def _frame_tables(plans: list[list[Event]], frames: int) -> tuple[Tensor, Tensor]:
    source = np.full((len(plans), frames), -1, np.int64)
    gain = np.zeros((len(plans), frames), np.float32)
    for row, plan in enumerate(plans):
        for first, at, n, g in plan:
            source[row, at : at + n] = first + np.arange(n)
            gain[row, at : at + n] = g
    return torch.from_numpy(source), torch.from_numpy(gain)


class Mixer:
    """Batches of (mixture [B, S], labels [B, T]) from a speech pool and a noise pool."""

    def __init__(self, speech: Pool, noise: Pool, config: MixConfig, device: torch.device, seed: int):
        self.config, self.device = config, device
        self.speech = PoolOnDevice(speech, device, balance=0.6)
        self.noise = PoolOnDevice(noise, device, balance=0.5)
        self.rng = Random(seed)
        self.torch_rng = torch.Generator(device).manual_seed(seed)

    def state(self) -> dict:
        """Where both generators stand, so that training can resume exactly."""
        return {"plan": self.rng.getstate(), "torch": self.torch_rng.get_state()}

    def restore(self, state: dict) -> None:
        """Put both generators back to where `state()` was taken."""
        self.rng.setstate(state["plan"])
        self.torch_rng.set_state(state["torch"].cpu())

    @torch.no_grad()
    def batch(self, rows: int) -> tuple[Tensor, Tensor]:
        """The next mixtures and their labels."""
        c = self.config
        speech, labels = self._speech(rows)
        speech = self._where(c.p_room, self._room, speech)
        speech = self._where(c.p_colour, self._colour, speech)
        bed = self._noise_bed(rows, speech.shape[1])
        mixture = self._combine(speech, labels, bed)
        mixture = self._where(c.p_colour, self._colour, mixture)
        mixture = self._where(c.p_phone, self._phone, mixture)
        mixture = self._where(c.p_mulaw, _mulaw, mixture)
        mixture = self._where(c.p_clip, self._clip, mixture)
        return mixture.clamp(-1.0, 1.0), labels

    def _speech(self, rows: int) -> tuple[Tensor, Tensor]:
        """Speech in silence, played faster or slower: other voices than were recorded."""
        c = self.config
        speed = self.rng.uniform(*c.speed) if self.rng.random() < c.p_speed else 1.0
        frames = round(c.frames * speed)
        plans = [self._plan_speech(frames) for _ in range(rows)]
        speech, labels = self.speech.render(plans, frames)
        if frames == c.frames:
            return speech, labels
        samples = c.frames * HOP
        played = torch.fft.irfft(torch.fft.rfft(speech), n=samples) * (samples / speech.shape[1])
        centre = (torch.arange(c.frames, device=self.device) + 0.5) * (frames / c.frames)
        return played, labels[:, centre.long()]

    def _plan_speech(self, frames: int) -> list[Event]:
        rng, c = self.rng, self.config
        if rng.random() < c.p_no_speech:
            return []
        mean_pause = rng.choice([15, 60, 150, 300])
        target, jitter = rng.uniform(*c.level_db), rng.uniform(0, c.jitter_db)

        def draw() -> tuple[int, int, float]:
            source, n, level = self.speech.draw(rng, rng.randrange(60, 600))
            return source, n, _ratio(target - level + rng.uniform(-jitter, jitter))

        return fill_row(rng, frames, draw, lambda: int(rng.expovariate(1 / mean_pause)) + 5)

    def _plan_noise(self) -> list[Event]:
        rng, c = self.rng, self.config
        sparse = rng.random() < c.p_sparse
        longest = rng.randrange(20, 200) if sparse else c.frames
        gap = rng.randrange(5, 200) if sparse else 1
        spread = rng.uniform(0, 6)

        def draw() -> tuple[int, int, float]:
            source, n, level = self.noise.draw(rng, longest)
            return source, n, _ratio(-20 - max(level, -55.0) + rng.uniform(-spread, spread))

        return fill_row(rng, c.frames, draw, lambda: int(rng.expovariate(1 / gap)))

    def _noise_bed(self, rows: int, samples: int) -> Tensor:
        """Recorded and synthetic noise, each row of unit power (over its whole length)."""
        frames = samples // HOP
        recorded, _ = self.noise.render([self._plan_noise() for _ in range(rows)], frames)
        second, _ = self.noise.render([self._plan_noise() for _ in range(rows)], frames)
        recorded = _unit(recorded) + _unit(second) * self.coin(0.25, rows) * self._gain(rows, -12, 0)
        made = torch.where(
            self.coin(0.6, rows) > 0, self._coloured(rows, samples), self._engine(rows, samples)
        )
        made = _unit(made * self._slow_gain(rows, samples))
        use_made = self.coin(self.config.p_synthetic, rows)
        only_made = use_made * self.coin(0.4, rows)
        bed = _unit(recorded) * (1 - only_made) + made * use_made * self._gain(rows, -15, 6)
        return _unit(bed)

    def _combine(self, speech: Tensor, labels: Tensor, bed: Tensor) -> Tensor:
        """Set the SNR over the speech frames, then leave some rows without noise."""
        c, rows = self.config, len(speech)
        frames = speech.unflatten(1, (-1, HOP)).square().mean(2)
        power = (frames * labels).sum(1) / labels.sum(1).clamp(min=1)
        alone = self._gain(rows, *c.level_db)
        level = torch.where(power[:, None] > 1e-12, power.sqrt()[:, None], alone)
        snr = self._gain(rows, *c.snr_db)
        quiet = 1 - self.coin(c.p_no_noise, rows)
        hiss = self._normal(*speech.shape) * self._gain(rows, -100, -60)
        return speech + bed * quiet * level / snr + hiss

    # random draws on the device, shaped [B, 1]

    def _uniform(self, rows: int, low: float, high: float) -> Tensor:
        u = torch.rand(rows, 1, generator=self.torch_rng, device=self.device)
        return low + (high - low) * u

    def coin(self, chance: float, rows: int) -> Tensor:
        """1.0 with this chance, else 0.0, for each row [B, 1]."""
        return (self._uniform(rows, 0, 1) < chance).float()

    def _gain(self, rows: int, low_db: float, high_db: float) -> Tensor:
        return 10 ** (self._uniform(rows, low_db, high_db) / 20)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.torch_rng, device=self.device)

    def _where(self, chance: float, change, x: Tensor) -> Tensor:
        return torch.where(self.coin(chance, len(x)) > 0, change(x), x)

    # effects, each [B, S] -> [B, S]

    def _curve(self, rows: int, bins: int, points: int, spread_db: float) -> Tensor:
        """A smooth random gain over frequency [B, bins]."""
        knots = self._normal(rows, 1, points) * spread_db
        curve = torch.nn.functional.interpolate(knots, size=bins, mode="linear", align_corners=True)
        return 10 ** (curve[:, 0] / 20)

    def _band(self, rows: int, bins: int, low: Tensor, high: Tensor) -> Tensor:
        """A band limit with soft edges between `low` and `high` Hz [B, 1]."""
        f = torch.linspace(0, RATE / 2, bins, device=self.device)[None]
        return torch.sigmoid((f - low) / (0.15 * low + 5)) * torch.sigmoid((high - f) / 150)

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * response, n=x.shape[1])

    def _colour(self, x: Tensor) -> Tensor:
        rows, bins = len(x), x.shape[1] // 2 + 1
        low, high = self._uniform(rows, 5, 250), self._uniform(rows, 3200, 9000)
        band = self._band(rows, bins, low, high)
        return self._filter(x, band * self._curve(rows, bins, 9, 4.0))

    def _phone(self, x: Tensor) -> Tensor:
        edge = torch.ones(len(x), 1, device=self.device)
        return _mulaw(self._filter(x, self._band(len(x), x.shape[1] // 2 + 1, 300 * edge, 3400 * edge)))

    def _room(self, x: Tensor) -> Tensor:
        """Direct sound plus exponentially decaying noise, 0.1 to 0.6 s, without added delay."""
        rows, size = len(x), RATE * 6 // 10
        time = torch.arange(size, device=self.device)[None] / RATE
        tail = self._normal(rows, size) * torch.exp(-6.9 * time / self._uniform(rows, 0.1, 0.6))
        tail[:, : RATE // 400] = 0
        tail = tail / tail.norm(dim=1, keepdim=True) * self._gain(rows, -18, 0)
        tail[:, 0] = 1
        full = x.shape[1] + size
        wet = torch.fft.irfft(torch.fft.rfft(x, n=full) * torch.fft.rfft(tail, n=full), n=full)
        return wet[:, : x.shape[1]]

    def _clip(self, x: Tensor) -> Tensor:
        limit = x.abs().amax(1, keepdim=True) * self._uniform(len(x), 0.2, 0.9)
        return torch.minimum(torch.maximum(x, -limit), limit)

    # noise that no recording holds

    def _coloured(self, rows: int, samples: int) -> Tensor:
        """Noise with a spectrum of f^-slope (-0.5 to 2) and random bumps."""
        bins = samples // 2 + 1
        f = torch.linspace(0, 1, bins, device=self.device)[None] + 2e-3
        shape = f ** (-self._uniform(rows, -0.25, 1.0)) * self._curve(rows, bins, 12, 6.0)
        return self._filter(self._normal(rows, samples), shape)

    def _engine(self, rows: int, samples: int) -> Tensor:
        """A drifting harmonic tone with random overtones, and noise pulsing at its rate."""
        drift = torch.nn.functional.interpolate(
            self._normal(rows, 1, 2 + samples // RATE), size=samples, mode="linear"
        )[:, 0]
        pitch = 10 ** self._uniform(rows, 0.7, 2.6) * (1 + 0.08 * drift)
        phase = 2 * torch.pi * torch.cumsum(pitch.double() / RATE, 1)
        tones = torch.zeros(rows, samples, device=self.device)
        for k in range(1, 13):
            strength = self._normal(rows, 1).abs() / k**0.5 * (pitch * k < RATE / 2.2)
            tones += strength * torch.sin(k * phase).float()
        pulse = (0.5 + 0.5 * torch.sin(phase).float()) ** 4
        return _unit(tones) + _unit(pulse * self._coloured(rows, samples)) * self._gain(rows, -20, 10)

    def _slow_gain(self, rows: int, samples: int) -> Tensor:
        depth = self._uniform(rows, 0, 8)
        knots = self._normal(rows, 1, 2 + samples // (RATE // 2))
        curve = torch.nn.functional.interpolate(knots, size=samples, mode="linear")[:, 0]
        return 10 ** (curve * depth / 20)


def _ratio(db: float) -> float:
    return 10 ** (db / 20)


def _unit(x: Tensor) -> Tensor:
    """Each row scaled to unit power; silent rows stay silent."""
    return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)


def _mulaw(x: Tensor) -> Tensor:
    """8-bit mu-law and back."""
    top = x.abs().amax(1, keepdim=True).clamp(min=1e-6) * 1.2
    y = torch.sign(x) * torch.log1p(255 * x.abs() / top) / np.log(256)
    y = torch.round(y * 127) / 127
    return torch.sign(y) * (torch.expm1(y.abs() * np.log(256)) / 255) * top
