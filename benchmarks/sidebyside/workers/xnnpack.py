"""ExecuTorch with XNNPACK: a step of one item, written in plain PyTorch, its state in mutable buffers.

ExecuTorch has no Mamba of its own. Its graphs have no loop over time, so the step is all there is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidebyside.shapes import Shape, Weights, load_weights
from sidebyside.wire import CannotError, TokenPeer, serve


class Mixer(nn.Module):
    """One item [1, d] through a Mamba or Mamba-2 mixer; the state is a buffer, written back."""

    def __init__(self, shape: Shape, weights: Weights):
        super().__init__()
        self.shape = shape
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), torch.from_numpy(value.copy()))
        self.conv1d_weight = self.conv1d_weight[:, 0].contiguous()
        self.register_buffer("A", -torch.exp(self.A_log))
        self.register_buffer("past", torch.zeros(shape.conv_width, shape.d_conv - 1))
        second = shape.kind == "mamba2"
        state = (shape.heads, shape.headdim, shape.d_state) if second else (shape.d_inner, shape.d_state)
        self.register_buffer("state", torch.zeros(state))

    def convolve(self, x: Tensor) -> Tensor:
        """x [C] -> [C], through the window that ends with it."""
        window = torch.cat([self.past, x[:, None]], 1)
        self.past.copy_(window[:, 1:])
        return F.silu((window * self.conv1d_weight).sum(1) + self.conv1d_bias)


class Mamba(Mixer):
    """S6."""

    def forward(self, u: Tensor) -> Tensor:
        """u [1, d] -> [1, d]."""
        D, N, R = self.shape.d_inner, self.shape.d_state, self.shape.dt_rank
        xz = F.linear(u, self.in_proj_weight)
        x, z = self.convolve(xz[0, :D]), xz[:, D:]
        dbc = F.linear(x[None], self.x_proj_weight)
        dt = F.softplus(F.linear(dbc[:, :R], self.dt_proj_weight) + self.dt_proj_bias)[0]
        B, C = dbc[0, R : R + N], dbc[0, R + N :]
        state = torch.exp(dt[:, None] * self.A) * self.state + (dt * x)[:, None] * B
        self.state.copy_(state)
        y = (state * C).sum(1) + self.D * x
        return F.linear(y[None] * F.silu(z), self.out_proj_weight)


class Mamba2(Mixer):
    """SSD."""

    def forward(self, u: Tensor) -> Tensor:
        """u [1, d] -> [1, d]."""
        s = self.shape
        D, N, H, P = s.d_inner, s.d_state, s.heads, s.headdim
        zxbcdt = F.linear(u, self.in_proj_weight)
        z, dt = zxbcdt[:, :D], zxbcdt[0, D + s.conv_width :]
        xbc = self.convolve(zxbcdt[0, D : D + s.conv_width])
        x, B, C = xbc[:D].reshape(H, P), xbc[D : D + N], xbc[D + N :]
        dt = F.softplus(dt + self.dt_bias)
        decay = torch.exp(dt * self.A)[:, None, None]
        state = decay * self.state + (dt[:, None] * x)[:, :, None] * B
        self.state.copy_(state)
        y = (state * C).sum(2) + self.D[:, None] * x
        y = y.reshape(1, D) * F.silu(z)
        y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + s.eps) * self.norm_weight
        return F.linear(y, self.out_proj_weight)


class Model(nn.Module):
    """One token id [1] -> logits [1, vocabulary]."""

    def __init__(self, shape: Shape, weights: Weights):
        super().__init__()
        self.eps = shape.eps
        kind = Mamba2 if shape.kind == "mamba2" else Mamba
        self.register_buffer("table", torch.from_numpy(weights["backbone.embeddings.weight"].copy()))
        self.register_buffer("norm_f", torch.from_numpy(weights["backbone.norm_f.weight"].copy()))
        mixers = []
        for index in range(shape.layers):
            block = f"backbone.layers.{index}."
            own = {
                name.removeprefix(f"{block}mixer."): value
                for name, value in weights.items()
                if name.startswith(f"{block}mixer.")
            }
            mixers.append(kind(shape, own))
            norm = torch.from_numpy(weights[f"{block}norm.weight"].copy())
            self.register_buffer(f"norm_{index}", norm)
        self.mixers = nn.ModuleList(mixers)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * weight

    def forward(self, token: Tensor) -> Tensor:
        """The logits that follow this token."""
        x = F.embedding(token, self.table)
        for index, mixer in enumerate(self.mixers):
            x = x + mixer(self._norm(x, getattr(self, f"norm_{index}")))
        return F.linear(self._norm(x, self.norm_f), self.table)


def export(shape: Shape, weights: Weights, path: Path) -> None:
    """To a ``.pte`` file, everything that XNNPACK takes delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model = Model(shape, weights).eval()
    exported = torch.export.export(model, (torch.zeros(1, dtype=torch.int64),))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)


class ExecuTorch(TokenPeer):
    """Its own runtime, one thread in its pool."""

    versions = ("executorch", "torch")

    def prepare(self) -> None:
        if self.precision != "fp32":
            raise CannotError("its quantised linear layers are not set up here")
        path = self.file(".pte")
        if not path.exists():
            draft = path.with_suffix(".draft")
            with torch.no_grad():
                export(self.shape, load_weights(self.folder), draft)
            draft.replace(path)

    def open(self) -> None:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        torch.set_num_threads(1)
        portable_lib._unsafe_reset_threadpool(1)
        self.threads = portable_lib._threadpool_get_thread_count()
        self.program = Runtime.get().load_program(self.file(".pte"))
        self.method = self.program.load_method("forward")
        self.fresh = True

    def reset(self, size: int) -> None:
        if size > 1:
            raise CannotError("its graph has no loop over time: one item a call")
        if not self.fresh:
            self.method = self.program.load_method("forward")
        self.fresh = False

    def push(self, tokens: np.ndarray, last: bool) -> Tensor:
        return self.method.execute((torch.from_numpy(tokens),))[0]

    def logits(self, result: Tensor) -> np.ndarray:
        return result.numpy()

    def facts(self) -> dict[str, object]:
        return {"threads": self.threads}


if __name__ == "__main__":
    serve(ExecuTorch)
