"""Endless training batches, cut and augmented on the device that trains, for several networks at once.

Letters: M networks, B rows of each, T samples. Each network has people whom it never sees, and strengths
of augmentation of its own, so that all are trained side by side.

    time warp        a row is read 1/w to w times as fast; rotation scales with it, acceleration is left
    other arm        half of the rows are mirrored (see `wrist_mirror`)
    worn differently a small rotation of the watch, and one about the forearm
    larger movement  everything but the mean acceleration of the row is scaled
    other posture    the mean acceleration moves towards that of somebody else at the same exercise
    sensor           gain, offset and noise
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from wrist_data import Series
from wrist_mirror import MIRROR


@dataclass(frozen=True)
class AugmentConfig:
    """How strong: standard deviations, but for ``warp``, the largest factor of speed, and chances ``p_``."""

    warp: float = 1.25
    tilt: float = 10.0  # degrees, about any axis
    twist: float = 15.0  # degrees, about the forearm
    amplitude: float = 0.1
    p_posture: float = 0.5
    gain: float = 0.07
    offset: float = 0.05  # g and rad/s
    noise: float = 0.05  # g and rad/s
    p_mirror: float = 0.5
    mix: float = 0.0  # the largest share of another row's sensor values and label


class Batches:
    """Draws x [M, B, T, 6] and label weights [M, B, 7] from recordings that lie on the device."""

    def __init__(
        self,
        series: list[Series],
        held_out: list[tuple[int, ...]],
        augment: list[AugmentConfig],
        length: int,
        device: torch.device,
        seed: int,
    ):
        self.length, self.device = length, device
        self.random = torch.Generator(device).manual_seed(seed)
        self.samples = torch.from_numpy(np.concatenate([one.x for one in series])).to(device)
        lengths = np.array([len(one.x) for one in series])
        self.lengths = torch.from_numpy(lengths).to(device)
        self.starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        self.labels = torch.tensor([one.label for one in series], device=device)
        self.side = torch.tensor([one.side for one in series], device=device)
        posture = np.array([one.x[:, :3].mean(0) * MIRROR[:3] ** one.side for one in series])
        self.posture = torch.from_numpy(posture).to(device)  # as if all were the same arm
        subjects = np.array([one.subject for one in series])
        allowed = [np.isin(subjects, people, invert=True) for people in held_out]
        self.allowed = torch.from_numpy(np.array(allowed)).float().to(device)
        self.mirror = torch.from_numpy(MIRROR).to(device)
        names = AugmentConfig.__dataclass_fields__
        self.strength = {n: torch.tensor([getattr(a, n) for a in augment], device=device) for n in names}

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """The next batch; see the class."""
        M = len(self.allowed)
        chosen = torch.multinomial(self.allowed, rows, replacement=True, generator=self.random)
        x = self._moved(self._read(chosen), chosen)
        x = self._sensed(self._rotated(self._mirrored(x)))
        labels = torch.nn.functional.one_hot(self.labels[chosen], 7).float()
        share = self._uniform(M, rows, 1) * self._of("mix", 3)
        labels = (1 - share) * labels + share * labels.roll(1, 1)
        share = share[..., None]
        return (1 - share) * x + share * x.roll(1, 1), labels

    def _read(self, chosen: Tensor) -> Tensor:
        """Series [M, B] -> samples [M, B, T, 6] from a random place at a random speed."""
        M, rows = chosen.shape
        lengths = self.lengths[chosen].float()
        speed = torch.exp((2 * self._uniform(M, rows) - 1) * self._of("warp", 2).log())
        speed = torch.minimum(speed, (lengths - 2) / self.length)
        first = self._uniform(M, rows) * (lengths - 2 - speed * (self.length - 1))
        place = first[..., None] + speed[..., None] * torch.arange(self.length, device=self.device)
        whole = place.floor()
        part = (place - whole)[..., None]
        index = self.starts[chosen][..., None] + whole.long()
        x = (1 - part) * self.samples[index] + part * self.samples[index + 1]
        factor = speed[..., None, None].expand(-1, -1, 1, 3)
        return x * torch.cat([torch.ones_like(factor), factor], -1)

    def _moved(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Larger or smaller movement about another mean posture."""
        shape = chosen.shape
        resting = x.mean(2, keepdim=True) * x.new_tensor([1, 1, 1, 0, 0, 0])
        x = resting + (x - resting) * torch.exp(self._normal(*shape, 1, 1) * self._of("amplitude", 4))
        alike = (self.labels == self.labels[chosen][..., None]) * self.allowed[:, None]
        other = torch.multinomial(alike.flatten(0, 1), 1, generator=self.random).view(shape)
        far = self._uniform(*shape) * (self._uniform(*shape) < self._of("p_posture", 2))
        change = (self.posture[other] - self.posture[chosen]) * far[..., None]
        change = torch.where(self.side[chosen][..., None] > 0, change * self.mirror[:3], change)
        return x + torch.cat([change, torch.zeros_like(change)], -1)[:, :, None]

    def _mirrored(self, x: Tensor) -> Tensor:
        coin = self._uniform(*x.shape[:2]) < self._of("p_mirror", 2)
        return torch.where(coin[..., None, None], x * self.mirror, x)

    def _rotated(self, x: Tensor) -> Tensor:
        shape = x.shape[:2]
        turn = self._normal(*shape, 3) * self._of("tilt", 3)
        twist = self._normal(*shape, 1) * self._of("twist", 3)
        turn = torch.cat([turn[..., :1] + twist, turn[..., 1:]], -1) * (torch.pi / 180)
        matrix = rotation(turn)
        return torch.cat([x[..., :3] @ matrix, x[..., 3:] @ matrix], -1)

    def _sensed(self, x: Tensor) -> Tensor:
        M, rows, _, axes = x.shape
        gain = 1 + self._normal(M, rows, 1, axes) * self._of("gain", 4)
        offset = self._normal(M, rows, 1, axes) * self._of("offset", 4)
        noise = torch.empty_like(x).normal_(generator=self.random) * self._of("noise", 4)
        return x * gain + offset + noise

    def _of(self, name: str, dims: int) -> Tensor:
        return self.strength[name].view(-1, *[1] * (dims - 1))

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.random, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, device=self.device)


def rotation(turn: Tensor) -> Tensor:
    """Rotation vectors [..., 3] in radians -> matrices [..., 3, 3], by Rodrigues' formula."""
    angle = turn.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    x, y, z = (turn / angle).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sin, cos = angle.sin()[..., None], angle.cos()[..., None]
    return torch.eye(3, device=turn.device) + sin * cross + (1 - cos) * (cross @ cross)
