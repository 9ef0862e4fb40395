"""The small transformer in PyTorch, its cache set to any age at once.

What a step costs does not depend on which numbers the cache holds, so beyond the first tokens the cache
is filled with random ones instead of being computed: ages are reached that would take hours of tokens.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidebyside.shapes import draw_tokens
from sidebyside.wire import Advance, Call, TokenPeer, serve
from sidebyside.workers.transformer import HEADS, THETA, draw

LONGEST = 1_000_000


class TransformerTorch(TokenPeer):
    """One item a call; keys and values in float32 buffers of the longest age."""

    versions = ("torch",)

    def open(self) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.weights = {name: torch.from_numpy(value) for name, value in draw(self.shape).items()}
        self.width = self.shape.d_model // HEADS
        self.frequencies = THETA ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        size = (2, self.shape.layers, HEADS, LONGEST, self.width)
        self.cache = torch.empty(size)  # its pages are taken as they are filled
        self.length = 0

    def reset(self, size: int) -> None:
        self.length = 0

    def push(self, tokens: np.ndarray, last: bool) -> Tensor:
        angle = self.length * self.frequencies
        turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
        x = self.weights["token_embd.weight"][torch.from_numpy(tokens)]
        self.length += 1
        for index in range(self.shape.layers):
            x = x + self._attend(self._norm(x, f"blk.{index}.attn_norm"), index, turn)
            h, block = self._norm(x, f"blk.{index}.ffn_norm"), f"blk.{index}.ffn"
            h = F.silu(self._map(h, f"{block}_gate")) * self._map(h, f"{block}_up")
            x = x + self._map(h, f"{block}_down")
        return F.linear(self._norm(x, "output_norm"), self.weights["token_embd.weight"])

    def _attend(self, h: Tensor, index: int, turn: Tensor) -> Tensor:
        q, k, v = (
            self._map(h, f"blk.{index}.attn_{name}").view(HEADS, 1, self.width) for name in ("q", "k", "v")
        )
        keys, values = self.cache[0, index], self.cache[1, index]
        keys[:, self.length - 1] = self._rotate(k, turn)[:, 0]
        values[:, self.length - 1] = v[:, 0]
        past = slice(0, self.length)
        # one query: two products by hand are faster than scaled_dot_product_attention
        scores = torch.bmm(self._rotate(q, turn), keys[:, past].transpose(1, 2)) * self.width**-0.5
        y = torch.bmm(scores.softmax(-1), values[:, past])
        return self._map(y.reshape(1, -1), f"blk.{index}.attn_output")

    @staticmethod
    def _rotate(x: Tensor, turn: Tensor) -> Tensor:
        """Adjacent pairs, as llama.cpp's layout has them."""
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).reshape(x.shape)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.shape.eps)

    def _map(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def logits(self, result: Tensor) -> np.ndarray:
        return result.numpy()

    def live(self) -> tuple[Advance, Call]:
        self.reset(1)
        tokens = draw_tokens(self.shape, 4096)

        def advance(items: int, end: float) -> int:
            part = self.cache[:, :, :, self.length : self.length + items]
            part.copy_(torch.randn(part.shape[-2:]))
            self.length += items
            return items

        def step() -> object:
            return self.push(tokens[self.length % len(tokens)][None], True)

        return advance, step


if __name__ == "__main__":
    serve(TransformerTorch)
