"""Networks as users write them: nothing here knows of streaming."""

from __future__ import annotations

import stand_ins
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Module):
    """Pads by K - s on the left, the way of strided causal codecs."""

    def __init__(self, inputs: int, outputs: int, K: int, s: int = 1):
        super().__init__()
        self.pad = K - s
        self.conv = nn.Conv1d(inputs, outputs, K, stride=s)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.pad, 0)))


class Chomped(nn.Module):
    """Pads on both sides and cuts the tail, the way of temporal convolutional networks."""

    def __init__(self, channels: int, K: int, dilation: int):
        super().__init__()
        self.extra = (K - 1) * dilation
        self.conv = nn.Conv1d(channels, channels, K, padding=self.extra, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x))[:, :, : -self.extra], inplace=True)


class Level(nn.Module):
    """Norm, Mamba and a residual over [B, C, T]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = stand_ins.Mamba(channels, d_state=5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mamba(self.norm(x.transpose(1, 2))).transpose(1, 2)


class UNet(nn.Module):
    """x [B, 3, T] -> {"mask": [B, T, 3], "label": ([B, T / 6, 4], None)}.

    Two strides down, Mamba at each level, a GRU at the bottom called twice, two ways up (transposed
    convolution, nearest neighbours), skips between levels, two heads at two rates.
    """

    def __init__(self, width: int = 6):
        super().__init__()
        self.stem = Chomped(3, 3, 2)
        self.downs = nn.ModuleList([CausalConv(3, width, 4, 2), CausalConv(width, width, 5, 3)])
        self.levels = nn.ModuleList([Level(width), Level(width)])
        self.gru = nn.GRU(width, width)
        self.up = nn.ConvTranspose1d(width, width, 6, stride=3)
        self.merge = CausalConv(2 * width, width, 3)
        self.mask, self.label = nn.Linear(width + 3, 3), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> dict:
        skips = [h := self.stem(x)]
        for down, level in zip(self.downs, self.levels, strict=True):
            h = level(torch.tanh(down(h)))
            skips.append(h)
        seq = h.permute(2, 0, 1)
        for _ in range(2):  # one module, two calls: each has a state of its own
            seq = seq + self.gru(seq)[0]
        h = self.up(seq.permute(1, 2, 0))[..., : skips[1].shape[-1]]
        h = self.merge(torch.cat([h, skips[1]], dim=1))
        h = F.interpolate(h, size=skips[0].shape[-1])
        fine = torch.cat([h, skips[0]], dim=1).transpose(1, 2)
        return {"mask": torch.sigmoid(self.mask(fine)), "label": (self.label(seq.transpose(0, 1)), None)}


class Centred(nn.Module):
    """Centred convolutions, then everything that has to sit out the look-ahead."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.a = nn.Conv1d(3, width, 5, padding=2)
        self.b = nn.Conv1d(width, width, 3, padding="same")
        self.gru, self.lstm = nn.GRU(width, width, 2, batch_first=True), nn.LSTM(width, width)
        self.mamba = stand_ins.Mamba(width, d_state=3, bias=True)
        self.qkv = nn.Linear(width, 3 * width)
        self.start = nn.Parameter(torch.randn(2, 1, width))
        self.head = nn.Linear(width + 3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = F.elu(self.b(torch.sigmoid(self.a(x.mT)))).mT
        h = self.gru(h, self.start.expand(-1, x.shape[0], -1).contiguous())[0]
        h = h + self.mamba(h) + self.lstm(h.transpose(0, 1))[0].transpose(0, 1)
        q, k, v = self.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(torch.cat([h + y, x], dim=-1))
