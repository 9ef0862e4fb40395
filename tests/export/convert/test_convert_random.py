"""Random stacks of everything that mixes time: each must convert, which its proof makes a test."""

from __future__ import annotations

import random

import pytest
import stand_ins
import torch
import torch.nn.functional as F
from test_convert import TOLERANCE, items, pushed
from torch import Tensor, nn

from streamssm.export import convert

WIDTH = 4


class Random(nn.Module):
    """x [B, 4, T] -> about the same, in one of many ways."""

    def __init__(self, choose: random.Random):
        super().__init__()
        K, self.dilation = choose.choice([1, 2, 3, 4, 5]), choose.choice([1, 2])
        self.kind = choose.choice(sorted(KINDS))
        self.span, self.shift, self.fill = (K - 1) * self.dilation, K, choose.choice([0.5, -1.0])
        self.conv = nn.Conv1d(WIDTH, WIDTH, K, dilation=self.dilation)
        self.stride = choose.choice([2, 3])
        size = choose.choice([self.stride, self.stride + 1, 2 * self.stride])
        self.left = choose.choice([0, size - self.stride, size - 1])
        self.down = nn.Conv1d(WIDTH, WIDTH, size, stride=self.stride)
        self.up = nn.ConvTranspose1d(WIDTH, WIDTH, size, stride=self.stride)
        self.gru, self.lstm = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.LSTM(WIDTH, WIDTH)
        self.mamba, self.qkv = stand_ins.Mamba(WIDTH, 3), nn.Linear(WIDTH, 3 * WIDTH)
        self.skip = choose.random() < 0.4

    def forward(self, x: Tensor) -> Tensor:
        y = KINDS[self.kind](self, x)
        return added(x, y) if self.skip else y


def added(x: Tensor, y: Tensor) -> Tensor:
    """Both, as far as both go."""
    items = min(x.shape[-1], y.shape[-1])
    return x[..., :items] + y[..., :items]


def same(net: Random, x: Tensor, padding: int | str) -> Tensor:
    return F.conv1d(x, net.conv.weight, net.conv.bias, padding=padding, dilation=net.dilation)


def slower(net: Random, x: Tensor) -> Tensor:
    return torch.tanh(net.down(F.pad(x, (net.left, 0))))


def attention(net: Random, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x.mT)[:, None].chunk(3, -1)
    return x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mT


KINDS = {
    "pad": lambda n, x: torch.tanh(n.conv(F.pad(x, (n.span, 0)))),
    "pad with a value": lambda n, x: n.conv(F.pad(x, (n.span, 0), value=n.fill)),
    "cut": lambda n, x: torch.sigmoid(same(n, x, n.span))[..., : x.shape[-1]],
    "centre": lambda n, x: torch.sigmoid(same(n, x, "same")),
    "valid": lambda n, x: n.conv(x) + x[..., n.span :],
    "nearest": lambda n, x: added(x, F.interpolate(slower(n, x), scale_factor=float(n.stride))),
    "transposed": lambda n, x: added(x, n.up(slower(n, x))),
    "pool": lambda n, x: F.max_pool1d(x, 3, 1, 1),
    "mean pool": lambda n, x: F.avg_pool1d(F.pad(x, (2, 0)), 3, 1),
    "shift": lambda n, x: x + F.pad(x, (n.shift, 0))[..., : -n.shift],
    "difference": lambda n, x: (p := F.pad(x, (1, 0)))[..., 1:] - 0.5 * p[..., :-1],
    "unfold": lambda n, x: F.pad(x, (2, 0)).unfold(2, 3, 1).amax(-1),
    "cut the start": lambda n, x: x[..., n.shift - 1 :],
    "gru": lambda n, x: n.gru(x.mT)[0].mT,
    "lstm": lambda n, x: x + n.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0),
    "mamba": lambda n, x: x + n.mamba(x.mT).mT,
    "attention": attention,
}


@pytest.mark.parametrize("seed", range(16))
def test_random_stacks_convert(seed: int) -> None:
    torch.manual_seed(seed)
    choose = random.Random(seed)
    model = nn.Sequential(*(Random(choose) for _ in range(choose.choice([2, 3, 4, 5])))).eval()
    layer = convert(model, item_shape=(WIDTH,), time=-1, lookahead=400, window=6)
    # the proof was in float64; as the weights are:
    x = items(layer, (31 + layer.lookahead) * layer.hop)
    with torch.no_grad():
        found, wanted = pushed(layer, x, [layer.hop, x.shape[1] - layer.hop])["output"], layer.reference(x)
    late = int(layer.lookahead * layer.output_ratio)
    assert (found - wanted)[:, late:].abs().max() <= TOLERANCE * wanted.abs().max()
