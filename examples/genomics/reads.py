"""Reads drawn from genomes with the errors of a sequencer, on the device that trains.

B reads, S bases of the genome under each, T bases of the read. Every read has error rates, their mix and
habits of its own, human or not, so that errors say nothing about where a read comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from adapters import bank
from genomes import HUMAN, Genomes
from torch import Tensor

BLOCK = 32  # bases that share a quality
LONGEST = 3  # bases put in at one place
UNKNOWN = 4  # the token of N
RUN = 60  # bases of the longest run of N


@dataclass(frozen=True)
class ErrorConfig:
    """What errors are drawn from; rates are in errors for each base of the genome."""

    rate: tuple[float, float] = (0.02, 0.22)
    p_clean: float = 0.06  # reads with a rate below 0.01
    p_rough: float = 0.04  # reads with a rate of 0.22 to 0.45, of which little can be said
    mix: tuple[float, float, float] = (1.0, 1.0, 1.0)  # substitutions, insertions, deletions
    mix_spread: float = 0.8  # deviation of their logarithms, from read to read
    uneven: float = 0.5  # deviation of the logarithm of the rate, from block to block
    p_more: tuple[float, float] = (0.1, 0.4)  # an insertion goes on
    p_copy: tuple[float, float] = (0.0, 0.7)  # an insertion repeats the base before it
    p_transition: tuple[float, float] = (0.2, 0.6)  # a substitution is A-G or C-T
    homopolymer: tuple[float, float] = (0.0, 3.0)  # a repeated base is lost so much more often
    p_prefix: float = 0.0  # reads that begin with a piece of adapters, or with bases by chance
    prefix: int = 80  # bases of the longest
    p_unknown: float = 0.0  # reads with N here and there; as many with a run of it
    p_ended: float = 0.0  # reads of which only N is left from some base on
    p_stutter: float = 0.0  # reads in which a few bases are said over and over, as a stalled pore does
    stutter: int = 6  # bases of the longest such unit


class ReadSimulator:
    """Draws reads; a generator of its own makes it repeatable."""

    def __init__(self, errors: ErrorConfig, device: torch.device, seed: int):
        self.errors, self.device = errors, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.mix = torch.tensor(errors.mix, device=device)

    def read(self, genome: Tensor, length: int) -> Tensor:
        """Bases [B, S] as the genome has them, 0 to 3 -> reads [B, length] with errors.

        S must leave room for deletions: see :func:`room`.
        """
        c, (B, S) = self.errors, genome.shape
        sub, ins, gone = self._rates(B, S)
        repeated = torch.nn.functional.pad(genome[:, 1:] == genome[:, :-1], (1, 0))
        gone = gone * (1 + self._between(B, c.homopolymer) * repeated)
        more = self._between(B, c.p_more)
        u = self._uniform(B, S)
        extra = sum((u < ins * more**k).long() for k in range(LONGEST))
        count = extra + (self._uniform(B, S) >= gone).long()
        ends = count.cumsum(1)
        place = torch.arange(length, device=self.device).expand(B, length)
        at = torch.searchsorted(ends, place.contiguous(), right=True).clamp_(max=S - 1)
        base = self._substituted(genome, sub).gather(1, at)
        rank = place - (ends - count).gather(1, at)  # of the base among those given for this place
        real = rank < (count - extra).gather(1, at)
        copied = self._uniform(B, length) < self._between(B, c.p_copy)
        bases = torch.where(real | copied, base, self._integers(4, B, length))
        return self._unknown(bases) if c.p_unknown or c.p_ended else bases

    def begun(self, genome: Tensor, bank: Tensor) -> Tensor:
        """Bases [B, S] with a share of the rows begun by what is no genome; errors come later."""
        c, B = self.errors, len(genome)
        length = self._uniform(B, 1) * (c.prefix + 1) * (self._uniform(B, 1) < c.p_prefix)
        place = torch.arange(c.prefix, device=self.device)
        adapter = bank[self._integers(len(bank) - c.prefix, B, 1) + place].long()
        chance = self._integers(4, B, c.prefix)
        start = torch.where(self._uniform(B, 1) < 0.5, adapter, chance)
        start = torch.where(place < length.floor(), start, genome[:, : c.prefix])
        return torch.cat([start, genome[:, c.prefix :]], 1)

    def stuttering(self, genome: Tensor) -> Tensor:
        """Bases [B, S] with a share of the rows taken over by a short unit; errors come later."""
        c, (B, S) = self.errors, genome.shape
        place = torch.arange(S, device=self.device)
        unit = self._integers(4, B, c.stutter)
        period = 1 + self._integers(c.stutter, B, 1)
        whole = self._uniform(B, 1) < 0.5  # from the first base on, the others from anywhere
        first = self._integers(S, B, 1).masked_fill(whole, 0)
        size = self._integers(S, B, 1) + S // 4
        inside = (place >= first) & (place < first + size) & (self._uniform(B, 1) < c.p_stutter)
        return torch.where(inside, unit.gather(1, (place - first) % period), genome)

    def _unknown(self, bases: Tensor) -> Tensor:
        """Bases [B, T] with N in some rows: single ones, a run, all from some base on."""
        c, (B, T) = self.errors, bases.shape
        place = torch.arange(T, device=self.device)
        rate = 0.3 * self._uniform(B, 1) ** 2 * (self._uniform(B, 1) < c.p_unknown)
        gone = self._uniform(B, T) < rate
        first, size = self._integers(T, B, 1), self._integers(RUN, B, 1)
        run = (place >= first) & (place <= first + size)
        gone = gone | run & (self._uniform(B, 1) < c.p_unknown)
        ended = (place >= self._integers(T, B, 1)) & (self._uniform(B, 1) < c.p_ended)
        return bases.masked_fill(gone | ended, UNKNOWN)

    def _rates(self, B: int, S: int) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities of the three errors at each base [B, S]."""
        c = self.errors
        rate, kind = self._between(B, c.rate), self._uniform(B, 1)
        rate = torch.where(kind < c.p_clean, self._between(B, (0.0, 0.01)), rate)
        rate = torch.where(kind > 1 - c.p_rough, self._between(B, (0.22, 0.45)), rate)
        blocks = torch.exp(c.uneven * self._normal(B, -(-S // BLOCK)) - c.uneven**2 / 2)
        rate = rate * blocks.repeat_interleave(BLOCK, 1)[:, :S]
        shares = self.mix * torch.exp(c.mix_spread * self._normal(B, 3))
        shares = shares / shares.sum(1, keepdim=True)
        return tuple((rate * shares[:, k : k + 1]).clamp(max=0.6) for k in range(3))

    def _substituted(self, genome: Tensor, rate: Tensor) -> Tensor:
        B, S = genome.shape
        other = (genome + 1 + 2 * self._integers(2, B, S)) % 4  # a transversion
        transition = self._uniform(B, S) < self._between(B, self.errors.p_transition)
        other = torch.where(transition, genome ^ 2, other)
        return torch.where(self._uniform(B, S) < rate, other, genome)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.generator)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator)

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, device=self.device, generator=self.generator)

    def _between(self, B: int, bounds: tuple[float, float]) -> Tensor:
        low, high = bounds
        return low + (high - low) * self._uniform(B, 1)


def room(length: int) -> int:
    """Bases of a genome that give `length` bases of a read, whatever the deletions."""
    return length * 3 // 2 + 64


class Reads:
    """Endless batches of labelled reads: half human, half microbes by their weights."""

    def __init__(
        self,
        genomes: Genomes,
        weights: dict[str, float],
        errors: ErrorConfig,
        device: torch.device,
        seed: int,
    ):
        self.bases = torch.from_numpy(genomes.bases).to(device)
        self.simulator = ReadSimulator(errors, device, seed)
        groups = [HUMAN, *(g for g in genomes.groups if weights.get(g, 0) > 0)]
        index = [genomes.groups.index(g) for g in groups]
        self.groups, self.device = groups, device
        self.start = torch.from_numpy(genomes.starts[index]).to(device)
        self.size = torch.from_numpy(genomes.starts[[i + 1 for i in index]]).to(device) - self.start
        self.weight = torch.tensor([weights[g] for g in groups[1:]], device=device)
        self.bank = torch.from_numpy(bank()).to(device)

    def batch(self, B: int, length: int, group: str | None = None) -> tuple[Tensor, Tensor]:
        """Reads [B, length] int64 and labels [B], 1 for human; the first half is human.

        With a ``group`` all are of that group.
        """
        draw, generator = self.simulator, self.simulator.generator
        if group is None:
            chosen = torch.multinomial(self.weight, B - B // 2, True, generator=generator) + 1
            which = torch.cat([chosen.new_zeros(B // 2), chosen])
        else:
            which = torch.full((B,), self.groups.index(group), device=self.device)
        S = room(length)
        u = torch.rand(B, device=self.device, generator=generator, dtype=torch.float64)
        first = (u * (self.size[which] - S)).long() + self.start[which]
        genome = self.bases[first[:, None] + torch.arange(S, device=self.device)].long()
        reverse = draw._uniform(B, 1) < 0.5
        genome = torch.where(reverse, 3 - genome.flip(1), genome)
        if draw.errors.p_prefix:
            genome = draw.begun(genome, self.bank)
        if draw.errors.p_stutter:
            genome = draw.stuttering(genome)
        return draw.read(genome, length), (which == 0).float()

    def state(self) -> Tensor:
        """What :meth:`restore` needs to go on."""
        return self.simulator.generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Go on from :meth:`state`."""
        self.simulator.generator.set_state(state.cpu())
