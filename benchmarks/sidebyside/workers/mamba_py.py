"""mambapy: Mamba in plain PyTorch. One item a step with a state, or a whole sequence without one.

Its ``lm`` module cannot be imported without mamba_ssm (a CUDA package), so the embedding and the head
around its stack are torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mambapy.mamba import Mamba, MambaConfig, RMSNorm

from sidebyside.shapes import load_weights
from sidebyside.wire import CannotError, TokenPeer, serve


class MambaPy(TokenPeer):
    """Called as its own ``generate`` does."""

    versions = ("mambapy", "torch")

    def open(self) -> None:
        shape = self.shape
        if self.precision != "fp32" or shape.kind != "mamba":
            raise CannotError("its step is Mamba-1 in float32 only")
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        options = MambaConfig(
            shape.d_model, shape.layers, d_state=shape.d_state, d_conv=shape.d_conv, rms_norm_eps=shape.eps
        )
        weights = {
            name.removeprefix("backbone."): torch.from_numpy(value)
            for name, value in load_weights(self.folder).items()
        }
        self.table = weights.pop("embeddings.weight")
        self.norm = RMSNorm(shape.d_model, shape.eps)
        self.norm.load_state_dict({"weight": weights.pop("norm_f.weight")})
        self.stack = Mamba(options).eval()
        self.stack.load_state_dict(weights, assign=True)

    def reset(self, size: int) -> None:
        D, past = self.shape.d_inner, self.shape.d_conv - 1
        self.caches = [(None, torch.zeros(1, D, past)) for _ in range(self.shape.layers)]
        self.fed = 0

    def push(self, tokens, last: bool):
        x = F.embedding(torch.from_numpy(tokens), self.table)
        if len(tokens) == 1:
            x, self.caches = self.stack.step(x, self.caches)
        else:
            if self.fed:
                raise CannotError("more than one item a call only from the start of a sequence")
            x = self.stack(x[None])[0]
        self.fed += len(tokens)
        return F.linear(self.norm(x[-1:] if last else x), self.table)

    def logits(self, result):
        return result.numpy()


if __name__ == "__main__":
    serve(MambaPy)
