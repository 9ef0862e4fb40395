"""typeseg (PyPI, Apache-2.0): a trained bidirectional Mamba that segments text by type.

Its weights as a torch module, built from the wheel by hand: the package itself runs on numpy. The
forward scan uses our operator, so that typeseg's own kernel is a test of it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.export.convert.warm import silenced
from streamssm.export.layers.base import State, StateSpec, StreamingLayer
from streamssm.export.ops import selective_scan

VERSION = "0.2.7"
DT_FLOOR = 1e-4


def unpacked(folder: Path) -> Path:
    """The wheel's content, fetched once; the test is skipped without a network."""
    content = folder / f"typeseg-{VERSION}"
    if not content.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            f"typeseg=={VERSION}",
            "--no-deps",
            "-d",
            str(folder),
        ]
        done = subprocess.run([*command, "-q"], capture_output=True, text=True, check=False)
        wheels = list(folder.glob("typeseg-*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"typeseg {VERSION} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(content)
    return content / "typeseg"


def its_kernel(folder: Path) -> ModuleType:
    """typeseg's own forward, pure numpy."""
    spec = importlib.util.spec_from_file_location("typeseg_kernel", folder / "_mamba_kernel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def its_weights(folder: Path) -> dict[str, np.ndarray]:
    """Names and arrays as typeseg stores them."""
    with np.load(folder / "data" / "mamba_al.npz", allow_pickle=False) as stored:
        return {name.replace("__", "/"): stored[name].astype(np.float32) for name in stored.files}


class Scan(StreamingLayer):
    """[u, dt, B, C] side by side [B, T, 2 D + 2 N] -> y [B, T, D]: one direction of the scan, ungated."""

    handles_warm_up = True

    def __init__(self, A_log: Tensor, D: Tensor):
        super().__init__()
        self.A_log, self.D = nn.Parameter(A_log), nn.Parameter(D)
        self.item_shape = (2 * A_log.shape[0] + 2 * A_log.shape[1],)

    def state_spec(self) -> dict[str, StateSpec]:
        return {"ssm": StateSpec(tuple(self.A_log.T.shape))}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state = self.start(x, state)
        (width, N), zero = self.A_log.shape, torch.zeros_like(self.D)
        u, dt, B, C = x.split([width, width, N, N], dim=-1)
        u = silenced(u)  # nothing flows in before the start
        raw = dt + torch.log(-torch.expm1(-dt))  # the operator takes a softplus of its step
        open_gate = torch.full_like(u, 1.2784645427610738)  # silu of it is one
        A, D = -self.A_log.exp().T, self.D
        A, D, zero = (value.to(state["ssm"].dtype) for value in (A, D, zero))
        y, ssm = selective_scan(u, raw, A, B, C, D, zero, open_gate, state["ssm"])
        return y, {"ssm": ssm}


class BidirectionalBlock(nn.Module):
    def __init__(self, weights: dict[str, np.ndarray], index: int):
        super().__init__()
        own = {
            k.split("/", 1)[1]: torch.from_numpy(v) for k, v in weights.items() if f"Block1D_{index}/" in k
        }
        self.norm = norm(own["LayerNorm_0/scale"], own["LayerNorm_0/bias"])
        self.in_proj, self.x_proj, self.dt_proj, self.out_proj = (
            linear(own[f"Dense_{n}/kernel"], own[f"Dense_{n}/bias"]) for n in range(4)
        )
        K, _, D = own["Conv_0/kernel"].shape
        self.conv = nn.Conv1d(D, D, K, groups=D, padding="same")
        self.conv.weight = nn.Parameter(own["Conv_0/kernel"].permute(2, 1, 0).contiguous())
        self.conv.bias = nn.Parameter(own["Conv_0/bias"])
        self.scan = Scan(own["A_log"], own["D"])

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        u = F.silu(self.conv(u.mT).mT)
        dt, B, C = self.x_proj(u).split([self.dt_proj.in_features, *[self.scan.A_log.shape[1]] * 2], dim=-1)
        side_by_side = torch.cat([u, F.softplus(self.dt_proj(dt)) + DT_FLOOR, B, C], dim=-1)
        y = self.scan(side_by_side)[0] + self.scan(side_by_side.flip(1))[0].flip(1)
        return x + self.out_proj(y * F.silu(gate))


class Typeseg(nn.Module):
    """tokens [B, T] below 257 -> logits [B, T, 35 classes]."""

    def __init__(self, weights: dict[str, np.ndarray], blocks: int = 6):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(weights["Embed_0/embedding"]))
        table = torch.cat([torch.arange(128), torch.full((128,), 128), torch.tensor([129])])
        self.register_buffer("table", table)
        self.blocks = nn.ModuleList(BidirectionalBlock(weights, index) for index in range(blocks))
        self.norm = norm(*(torch.from_numpy(weights[f"LayerNorm_0/{name}"]) for name in ("scale", "bias")))
        self.head = linear(*(torch.from_numpy(weights[f"Dense_0/{name}"]) for name in ("kernel", "bias")))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(self.table[tokens])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def linear(kernel: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*kernel.shape)
    layer.weight, layer.bias = nn.Parameter(kernel.T.contiguous()), nn.Parameter(bias)
    return layer


def norm(scale: Tensor, bias: Tensor) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(scale), eps=1e-6)
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(bias)
    return layer
