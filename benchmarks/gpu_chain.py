"""Whole stacks on many rows or many items: matrix products by cuBLAS, everything else by the CUDA library,
recorded as one CUDA graph. Weights and activations are float16, states and the residual stream float32."""

from __future__ import annotations

import numpy as np
import torch
from gpu_models import EPS, Mamba, Stack, _f64, native

HALF = native.FLOAT16
LOW_RANK_ITEMS = 512  # of a call, up to which a scan that makes its step sizes is sooner done


class Chain:
    """``stack`` on B rows, row b on slot b, T items a call; ``tokens [B, T]`` in, ``logits [B, vocabulary]``
    of the last items out, states in place."""

    def __init__(self, library: native.Library, stack: Stack, B: int, T: int):
        self.library, self.stack, self.B, self.T, self.rows = library, stack, B, T, B * T
        self.tokens = torch.zeros(B, T, dtype=torch.int64, device="cuda")
        self.residual = torch.zeros(self.rows, stack.d_model, device="cuda")
        self.normed = self.half(stack.d_model)
        self.out = self.half(stack.d_model)
        self.logits = torch.full((B, stack.vocabulary), float("nan"), dtype=torch.float16, device="cuda")
        self.mixer = self.mamba if isinstance(stack, Mamba) else self.mamba2
        self.layers = [self.mixer(*layer) for layer in zip(stack.weights, stack.conv, stack.ssm, strict=True)]

    def half(self, width: int) -> torch.Tensor:
        return torch.full((self.rows, width), float("nan"), dtype=torch.float16, device="cuda")

    def launch(self, name: str, call: native.Structure) -> None:
        self.library.operator(name, call, torch.cuda.current_stream().cuda_stream)

    def norm(self, weight: torch.Tensor, added: torch.Tensor | None) -> None:
        width = self.stack.d_model
        pointers = (self.residual, added, weight, self.normed)
        call = native.NormCall(
            self.rows, width, HALF, EPS, *(None if t is None else t.data_ptr() for t in pointers)
        )
        self.launch("norm", call)

    def conv(
        self, w: dict, x: torch.Tensor, pitch: int, state: torch.Tensor, y: torch.Tensor
    ) -> native.ConvCall:
        pointers = (t.data_ptr() for t in (x, w["conv_weight"], w["conv_bias"], state, state, y))
        return native.ConvCall(self.B, self.T, None, None, y.shape[1], 4, HALF, 1, *pointers, pitch)

    def mamba(self, w: dict, conv_state: torch.Tensor, state: torch.Tensor):
        s = self.stack
        xz, u, small = self.half(2 * s.D), self.half(s.D), self.half(s.R + 2 * s.N)
        dt, y = self.half(s.D), self.half(s.D)
        conv = self.conv(w, xz, 2 * s.D, conv_state, u)
        tensors = (
            u,
            dt,
            small[:, s.R :],
            small[:, s.R + s.N :],
            xz[:, s.D :],
            w["A"],
            w["skip"],
            w["dt_bias"],
        )
        pointers = [t.data_ptr() for t in (*tensors, state, state, y)]
        pitches = (2 * s.D, s.R + 2 * s.N)
        low = native.LowRank(s.R, s.R + 2 * s.N, small.data_ptr(), w["dt_proj"].data_ptr())
        scan = native.ScanCall(self.B, self.T, None, None, s.D, s.N, HALF, 0, *pointers, *pitches)

        def run() -> None:
            torch.mm(self.normed, w["in_proj"].T, out=xz)
            self.launch("causal_conv1d", conv)
            torch.mm(u, w["x_proj"].T, out=small)
            if 1 < self.T <= LOW_RANK_ITEMS:
                self.library.scan_low_rank(scan, low, torch.cuda.current_stream().cuda_stream)
            else:
                torch.mm(small[:, : s.R], w["dt_proj"].T, out=dt)
                self.launch("selective_scan", scan)
            torch.mm(y, w["out_proj"].T, out=self.out)

        run.keep = (xz, u, small, dt, y)
        return run

    def mamba2(self, w: dict, conv_state: torch.Tensor, state: torch.Tensor):
        s = self.stack
        D, W = s.H * s.P, 2 * s.G * s.N
        wide, mixed, y, gated = (self.half(n) for n in (2 * D + W + s.H, D + W, D, D))
        pitch = wide.shape[1]
        conv = self.conv(w, wide[:, D:], pitch, conv_state, mixed)
        raw = wide[:, 2 * D + W :]
        sizes = native.RawSteps(pitch, *s.dt_limit, w["dt_bias"].data_ptr())
        tensors = (mixed, raw, mixed[:, D:], mixed[:, D + s.G * s.N :], w["A"], w["skip"], state, state, y)
        pointers = [t.data_ptr() for t in tensors]
        dual = native.DualCall(
            self.B, self.T, None, None, s.H, s.P, s.G, s.N, HALF, 0, *pointers, D + W, D + W
        )
        pointers = [t.data_ptr() for t in (y, wide, w["gate_norm"], gated)]
        gate = native.GateNormCall(self.rows, D, pitch, HALF, EPS, *pointers)

        def run() -> None:
            torch.mm(self.normed, w["in_proj"].T, out=wide)
            self.launch("causal_conv1d", conv)
            self.library.dual_raw(dual, sizes, torch.cuda.current_stream().cuda_stream)
            self.launch("gate_norm", gate)
            torch.mm(gated, w["out_proj"].T, out=self.out)

        run.keep = (wide, mixed, y, gated)
        return run

    def step(self) -> None:
        stack = self.stack
        torch.index_select(stack.embedding, 0, self.tokens.view(-1), out=self.normed)
        self.residual.copy_(self.normed)
        added = None
        for weights, layer in zip(stack.weights, self.layers, strict=True):
            self.norm(weights["norm"], added)
            layer()
            added = self.out
        self.norm(stack.norm, added)
        last = self.normed.view(self.B, self.T, -1)[:, -1]
        torch.mm(last, stack.embedding.T, out=self.logits)


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return error if np.isfinite(got).all() else float("nan")


def error_of(chain: Chain, rows: int = 2) -> float:
    """One call on fresh tokens, from the states as they are, against float64 on the first rows."""
    stack = chain.stack
    chain.tokens.random_(stack.vocabulary)
    states = [
        {"conv": _f64(conv[:rows]), "ssm": _f64(ssm[:rows])}
        for conv, ssm in zip(stack.conv, stack.ssm, strict=True)
    ]
    chain.logits.fill_(float("nan"))
    chain.step()
    torch.cuda.synchronize()
    for t in range(chain.T):
        x = np.concatenate([stack.input_of(int(token)) for token in chain.tokens[:rows, t]])
        logits, states = stack.reference_step(x, states, head=t == chain.T - 1)
    worst = relative(_f64(chain.logits[:rows]), logits)
    for ssm, state in zip(stack.ssm, states, strict=True):
        worst = max(worst, relative(_f64(ssm[:rows]), state["ssm"]))
    return worst


def difference(library: native.Library, stack: Stack, T: int, part: int) -> float:
    """T items at once, beside the same in parts: the largest difference of logits and states, relative."""
    results = []
    tokens = torch.randint(stack.vocabulary, (1, T), device="cuda")
    for size in (T, part):
        stack.conv.zero_(), stack.ssm.zero_()
        chain = Chain(library, stack, 1, size)
        for first in range(0, T, size):
            chain.tokens.copy_(tokens[:, first : first + size])
            chain.step()
        results.append([_f64(t) for t in (chain.logits, stack.ssm)])
    return max(relative(a, b) for a, b in zip(*results, strict=True))
