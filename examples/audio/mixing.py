"""Endless training mixtures, drawn from pools and mixed in torch on the device that trains.

A batch is planned on the CPU (which items, where, how fast, how loud: small tables drawn from a
generator seeded by run and step) and rendered on the device (gathers, filters, noise). Nothing is
ever stored, and step n is the same mixture whether or not training was interrupted before it.

Letters: B rows in a batch, T frames in a row, S = T * HOP samples.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass, field
from random import Random

import effects
import numpy as np
import torch
from dataset import HOP, DataError, Pool
from effects import gain, uniform
from torch import Tensor

Event = tuple[float, int, int, float, float]  # source sample, frame in the row, frames, speed, gain


@dataclass(frozen=True)
class MixConfig:
    """What the mixtures are like; shares are of the rows of a batch."""

    frames: int = 1000
    snr_db: tuple[float, float] = (-6.0, 21.0)
    wide_snr_db: tuple[float, float] = (-10.0, 35.0)
    wide_snr: float = 0.25  # share of rows with an SNR from the wider range
    level_db: tuple[float, float] = (-45.0, -12.0)  # of active speech, or of the bed without speech
    jitter_db: float = 5.0  # between utterances of a row
    speed: tuple[float, float] = (0.78, 1.28)  # of speech, pitch and all; one draw for a row
    noise_speed: tuple[float, float] = (0.75, 1.3)
    resampled: float = 0.7  # share of rows whose speed is not 1
    cropped: float = 0.25  # share of utterances that start or end anywhere
    one_group: float = 0.6  # share of rows whose utterances (or noises) are all of one group
    spoken: tuple[float, float] = (0.94, 0.6)  # share of rows with speech; of those, talk at a natural pace
    no_noise: float = 0.05
    sparse: float = 0.25  # noise events with gaps, instead of a continuous bed
    synthetic: float = 0.2  # coloured noise or a made-up engine joins in
    babble: float = 0.04
    room: float = 0.25
    colour: float = 0.4  # random equaliser on the speech, and another on the mixture
    phone: float = 0.06  # 300 to 3400 Hz and 8-bit mu-law
    mulaw: float = 0.04
    coded: float = 0.08  # holes and rounding as of a transform codec at a low rate
    clip: float = 0.04
    hiss: bool = True


#: what a validation mixture is: whole utterances with pauses of 0.3 to 2 s in plain noise
PLAIN = MixConfig(
    snr_db=(0.0, 20.0), wide_snr=0, level_db=(-30.0, -22.0), jitter_db=3.0, resampled=0, cropped=0,
    spoken=(1.0, 1.0), one_group=1.0, no_noise=0, sparse=0, synthetic=0, babble=0, room=0, colour=0,
    phone=0, mulaw=0, coded=0, clip=0, hiss=False,
)  # fmt: skip


@dataclass
class Plan:
    """Tables that say what one batch is made of; arrays become tensors on the device."""

    speech: tuple[np.ndarray, ...] = ()
    noise: tuple[np.ndarray, ...] = ()
    second: tuple[np.ndarray, ...] = ()
    snr: np.ndarray = field(default_factory=lambda: np.zeros(0))
    chosen: dict[str, np.ndarray] = field(default_factory=dict)
    seed: int = 0


class Table:
    """Items of a pool, drawn group by group; small enough to live on the CPU.

    A group is drawn in proportion to its length to the power of `balance`, times the factors in
    `favour` of the words in its name; then an item of it in proportion to the item's length.

    Raises:
        DataError: a word is in no group's name.
    """

    def __init__(self, pool: Pool, balance: float, favour: dict[str, float] | None = None):
        self.start, self.length = pool.start.tolist(), pool.length.tolist()
        self.level = pool.level.tolist()
        seconds = np.bincount(pool.group, pool.length, len(pool.groups))
        favour = favour or {}
        for word in favour:
            if not any(word in group for group in pool.groups):
                raise DataError(f"favoured = {word!r} is in no name; there are {', '.join(pool.groups)}")
        factors = [math.prod(f for word, f in favour.items() if word in group) for group in pool.groups]
        self.groups = _running(seconds**balance * np.array(factors))
        self.items = [np.flatnonzero(pool.group == g) for g in range(len(pool.groups))]
        self.chances = [_running(pool.length[items]) for items in self.items]

    def group(self, rng: Random) -> int:
        """The index of one group."""
        return _draw(self.groups, rng)

    def item(self, rng: Random, group: int | None = None) -> int:
        """The index of one item, of any group or of one."""
        group = self.group(rng) if group is None else group
        return int(self.items[group][_draw(self.chances[group], rng)])


def _running(weights: np.ndarray) -> list[float]:
    return np.cumsum(weights / max(weights.sum(), 1)).tolist()


def _draw(running: list[float], rng: Random) -> int:
    return min(bisect(running, rng.random() * running[-1]), len(running) - 1)


class Planner:
    """Plans of batches, by step: what a row says, and what it is heard in."""

    def __init__(self, speech: Table, noise: Table, config: MixConfig, rows: int, seed: int):
        self.speech, self.noise, self.config, self.rows, self.seed = speech, noise, config, rows, seed

    def __getitem__(self, step: int) -> Plan:
        c, rows = self.config, self.rows
        rng, dice = Random(f"{self.seed} {step}"), np.random.default_rng([self.seed, step])
        speech = [self._talk(rng) for _ in range(rows)]
        noise, second = ([self._bed(rng) for _ in range(rows)] for _ in range(2))
        wide = dice.random(rows) < c.wide_snr
        snr = np.where(wide, dice.uniform(*c.wide_snr_db, rows), dice.uniform(*c.snr_db, rows))
        shares = ("no_noise", "synthetic", "babble", "room", "phone", "mulaw", "coded", "clip")
        chosen = {name: self._choose(dice, getattr(c, name)) for name in shares}
        chosen |= {f"colour_{part}": self._choose(dice, c.colour) for part in ("speech", "mixture")}
        chosen["second"] = self._choose(dice, 0.25 if c.hiss else 0.0)
        tables = [frame_tables(p, c.frames) for p in (speech, noise, second)]
        return Plan(*tables, snr.astype(np.float32), chosen, int(dice.integers(2**62)))

    def _choose(self, dice: np.random.Generator, share: float) -> np.ndarray:
        """Rows of one effect: always as many, so that shapes stay the same from batch to batch."""
        return np.sort(dice.permutation(self.rows)[: round(share * self.rows)])

    def _talk(self, rng: Random) -> list[Event]:
        c = self.config
        if rng.random() >= c.spoken[0]:
            return []
        pause = self._pauses(rng, rng.random() < c.spoken[1])
        target, jitter = rng.uniform(*c.level_db), rng.uniform(0, c.jitter_db)
        speed = rng.uniform(*c.speed) if rng.random() < c.resampled else 1.0
        group = self.speech.group(rng) if rng.random() < c.one_group else None
        plan, at = [], pause() - (rng.randrange(300) if rng.random() < 0.5 else 0)
        while at < c.frames:
            source, n, level = self._utterance(rng, group)
            frames = int((n - 1) / speed)
            if at + frames > 0 and frames > 3:
                loud = 10 ** ((target - level + rng.uniform(-jitter, jitter)) / 20)
                plan.append((source, at, frames, speed, loud))
            at += frames + pause()
        return plan

    def _pauses(self, rng: Random, natural: bool):
        if natural:
            return lambda: rng.randrange(30, 200)
        mean = rng.choice([15, 60, 150, 400])
        return lambda: int(rng.expovariate(1 / mean)) + 5

    def _utterance(self, rng: Random, group: int | None) -> tuple[float, int, float]:
        item = self.speech.item(rng, group)
        n, offset = self.speech.length[item], 0
        if n > 1200 or rng.random() < self.config.cropped:
            take = min(n, rng.randrange(60, 900))
            offset = rng.randrange(n - take + 1)
            n = take
        return (self.speech.start[item] + offset) * float(HOP), n, self.speech.level[item]

    def _bed(self, rng: Random) -> list[Event]:
        c = self.config
        sparse = rng.random() < c.sparse
        longest = rng.randrange(20, 200) if sparse else c.frames * 2
        gap = rng.randrange(5, 200) if sparse else 0
        spread = rng.uniform(0, 6) if c.hiss else 0.0
        speed = rng.uniform(*c.noise_speed) if rng.random() < c.resampled else 1.0
        group = self.noise.group(rng) if rng.random() < c.one_group else None
        plan, at = [], -rng.randrange(300) if sparse else 0
        while at < c.frames:
            item = self.noise.item(rng, group)
            n = min(self.noise.length[item], longest)
            offset = rng.randrange(self.noise.length[item] - n + 1)
            frames = max(1, int((n - 1) / speed))
            loud = 10 ** ((-20 - max(self.noise.level[item], -55.0) + rng.uniform(-spread, spread)) / 20)
            if at + frames > 0:
                plan.append(((self.noise.start[item] + offset) * float(HOP), at, frames, speed, loud))
            at += frames + (int(rng.expovariate(1 / gap)) if gap else 0)
        return plan


def frame_tables(plans: list[list[Event]], frames: int) -> tuple[np.ndarray, ...]:
    """(source sample int64, its fraction, speed, gain) [B, T] of each frame; source -1 is silence."""
    source = np.full((len(plans), frames), -1.0)
    speed, loud = np.ones((2, len(plans), frames), np.float32)
    for row, plan in enumerate(plans):
        for first, at, n, rate, g in plan:
            low, high = max(at, 0), min(at + n, frames)
            source[row, low:high] = first + (np.arange(low, high) - at) * (HOP * rate)
            speed[row, low:high], loud[row, low:high] = rate, g
    whole = np.floor(source)
    return whole.astype(np.int64), (source - whole).astype(np.float32), speed, loud


def interpolate(audio: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
    """Samples int16 and frame tables [B, T] -> sound [B, S], cubic between samples."""
    source, fraction, speed, loud = tables
    at = fraction[..., None] + speed[..., None] * torch.arange(HOP, device=audio.device)
    whole = at.floor()
    f = at - whole
    index = (source.clamp(min=0)[..., None] + whole.long()).clamp(1, len(audio) - 3)
    a, b, c, d = (audio[index + j].float() for j in (-1, 0, 1, 2))
    cubic = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))
    return (cubic * (loud * (source >= 0) / 32768.0)[..., None]).flatten(1)


class Sound:
    """A pool's samples and labels on the device."""

    def __init__(self, pool: Pool, device: torch.device):
        self.device = device
        self.audio = torch.from_numpy(pool.audio).to(device)
        self.labels = torch.from_numpy(pool.labels).to(device)

    def render(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Sound [B, S] and labels [B, T] of frame tables."""
        source, _, speed, _ = tables
        sound = interpolate(self.audio, tables)
        centre = ((source + (speed * HOP / 2).long()).clamp(min=0) // HOP).clamp(max=len(self.labels) - 1)
        return sound, self.labels[centre].float() * (source >= 0)


class Mixer:
    """Batches of (mixture [B, S], labels [B, T]) from plans, a speech pool and a noise pool."""

    def __init__(self, speech: Pool, noise: Pool, config: MixConfig, device: torch.device):
        self.config, self.device = config, device
        self.speech, self.noise = Sound(speech, device), Sound(noise, device)
        self.rng = torch.Generator(device)

    def send(self, array: np.ndarray) -> Tensor:
        """To the device without waiting for what it is doing."""
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
        )

    def mix(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """The mixtures of a plan and their labels."""
        return self.parts(plan)[:2]

    @torch.no_grad()
    def parts(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mixtures [B, S], labels [B, T], the speech in them [B, S], and the mixtures before the
        effects on the whole [B, S]: of these the speech is a summand."""
        self.rng.manual_seed(plan.seed)
        rows = {name: self.send(index) for name, index in plan.chosen.items()}
        speech, labels = self.speech.render(tuple(self.send(x) for x in plan.speech))
        bed = self._bed(plan, rows, speech)
        self._apply(effects.room, speech, rows["room"])
        self._apply(effects.colour, speech, rows["colour_speech"])
        plain = self._combine(speech, labels, bed, self.send(plan.snr), rows["no_noise"])
        mixture = plain.clone()
        self._apply(effects.colour, mixture, rows["colour_mixture"])
        for name in ("phone", "coded", "mulaw", "clip"):
            self._apply(getattr(effects, name), mixture, rows[name])
        return mixture.clamp(-1.0, 1.0), labels, speech, plain

    def _apply(self, effect, x: Tensor, rows: Tensor) -> None:
        if len(rows):
            x[rows] = effect(x[rows], self.rng)

    def _bed(self, plan: Plan, rows: dict[str, Tensor], speech: Tensor) -> Tensor:
        """Recorded and synthetic noise, each row of unit power (over its whole length)."""
        bed = effects.unit(self.noise.render(tuple(self.send(x) for x in plan.noise))[0])
        if len(rows["second"]):
            again = tuple(self.send(x[plan.chosen["second"]]) for x in plan.second)
            extra = effects.unit(self.noise.render(again)[0])
            bed[rows["second"]] += extra * gain(len(extra), -12, 0, self.rng)
        if len(rows["synthetic"]):
            made = effects.synthetic(len(rows["synthetic"]), bed.shape[1], self.rng)
            keep = (uniform(len(made), 0, 1, self.rng) < 0.6).float()
            bed[rows["synthetic"]] = bed[rows["synthetic"]] * keep + made * gain(len(made), -15, 6, self.rng)
        if len(rows["babble"]):
            others = torch.stack([effects.unit(speech).roll(k, 0)[rows["babble"]] for k in range(1, 9)])
            bed[rows["babble"]] = others.sum(0)
        return effects.unit(bed)

    def _combine(self, speech: Tensor, labels: Tensor, bed: Tensor, snr: Tensor, quiet: Tensor) -> Tensor:
        """Set the SNR over the speech frames, then leave some rows without noise."""
        count = len(speech)
        frames = speech.unflatten(1, (-1, HOP)).square().mean(2)
        power = (frames * labels).sum(1) / labels.sum(1).clamp(min=1)
        alone = gain(count, *self.config.level_db, self.rng)
        level = torch.where(power[:, None] > 1e-12, power.sqrt()[:, None], alone)
        bed[quiet] = 0
        mixture = speech + bed * level * 10 ** (-snr[:, None] / 20)
        if self.config.hiss:
            noise = torch.randn(speech.shape, generator=self.rng, device=self.device)
            mixture += noise * gain(count, -110, -60, self.rng)
        return mixture
