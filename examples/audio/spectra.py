"""What training does with the spectrum and the file does not keep: a second target, masking, warping."""

from __future__ import annotations

import torch
from model import ModelConfig
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

SILENCE = -13.0  # log-mel of next to nothing


class SecondTarget(torch.nn.Module):
    """Predicts how much of each band is speech, from what the last layer reads; for training only.

    The target is the ideal ratio mask, sqrt(power of the speech / power of the mixture) of each mel
    band and frame. It says where the speech is, not only that there is some, and is not kept.
    """

    def __init__(self, network: torch.nn.Module, config: ModelConfig):
        super().__init__()
        self.bands = torch.nn.Linear(config.d_model, config.n_mels)
        self.front, self.hidden = [network[0]], None  # in a list: its parameters are the network's
        network[-2].register_forward_hook(self._remember)

    def _remember(self, _layer: torch.nn.Module, _inputs: tuple, out: tuple) -> None:
        self.hidden = out[0]

    @torch.no_grad()
    def target(self, speech: Tensor, plain: Tensor) -> Tensor:
        """Speech [B, S] in a mixture [B, S] -> mask [B, T, M]."""
        front = self.front[0]
        power, whole = (front.forward(x)[0].exp() for x in (speech, plain))
        return ((power - front.eps) / whole).clamp(0.0, 1.0).sqrt()

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy of the mask for the network's last call, which it forgets."""
        hidden, self.hidden = self.hidden, None  # kept, it would hold the call's whole autograd graph
        return binary_cross_entropy_with_logits(self.bands(hidden), target)


def mask_band(mel: Tensor, share: float) -> Tensor:
    """mel [B, T, M] with up to a quarter of the bands at the level of silence, in this share of rows."""
    rows, _, bands = mel.shape
    dice = torch.rand(3, rows, 1, 1, device=mel.device)
    width = dice[0] * bands / 4
    first = dice[1] * (bands - width)
    band = torch.arange(bands, device=mel.device)
    return torch.where((band >= first) & (band < first + width) & (dice[2] < share), SILENCE, mel)


def warp_bands(mel: Tensor, most: float) -> Tensor:
    """mel [B, T, M] read at bands scaled by up to 1 +- `most` and moved by up to 2, in half of the rows."""
    rows, _, bands = mel.shape
    scale, shift, dice = torch.rand(3, rows, 1, device=mel.device)
    band = torch.arange(bands, device=mel.device)
    moved = (band * (1 + most * (2 * scale - 1)) + 4 * shift - 2).clamp(0, bands - 1)
    at = torch.where((dice < 0.5) & (most > 0), moved, band)
    return mel @ (1 - (band[:, None] - at[:, None]).abs()).clamp(min=0)
