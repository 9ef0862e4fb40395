"""One item of many streams through a whole stack in the library's own kernels, beside the same in float64."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int64, c_void_p

import numpy as np
import torch
from gpu_models import Stack, _f64, native


class RowsCall(ctypes.Structure):
    """A step of many rows; see rows_api.h. A pool is (state, next, layer_stride, slot_stride)."""

    _fields_ = native._fields(
        "batch: i64; tokens x slots: ptr; conv_state conv_next: ptr; conv_layer conv_slot: i64;"
        "ssm_state ssm_next: ptr; ssm_layer ssm_slot: i64; residual logits: ptr"
    )


class Rows:
    """``stack`` on up to ``most`` rows: ``tokens [B]`` or ``x [B, d_model]`` in, ``logits [B, vocabulary]``
    (float16) and the ``residual`` stream out."""

    def __init__(self, library: native.Library, stack: Stack, most: int):
        self.library, self.stack, self.most = library._library, stack, most
        for name, arguments in (
            (f"{stack.kind}_rows_create", (c_void_p, c_int64, c_void_p)),
            ("rows_step", (c_void_p, c_void_p, c_void_p)),
            ("rows_destroy", (c_void_p,)),
        ):
            function = getattr(self.library, f"streamssm_cuda_{name}")
            function.argtypes, function.restype = arguments, None if "destroy" in name else c_char_p
        self.tokens = torch.zeros(most, dtype=torch.int32, device="cuda")
        self.residual = torch.full((most, stack.d_model), float("nan"), device="cuda")
        self.logits = torch.full((most, stack.vocabulary), float("nan"), dtype=torch.float16, device="cuda")
        pointers = [{name: t.data_ptr() for name, t in layer.items()} for layer in stack.weights]
        array = (stack.layer_type * stack.layers)(*(stack.layer_type(**p) for p in pointers))
        self.handle = c_void_p()
        create = getattr(self.library, f"streamssm_cuda_{stack.kind}_rows_create")
        self._check(create(ctypes.byref(stack.model(array)), most, ctypes.byref(self.handle)))

    def _check(self, reason: bytes | None) -> None:
        if reason is not None:
            raise RuntimeError(f"{self.stack.kind} rows: {reason.decode()}")

    def destroy(self) -> None:
        torch.cuda.synchronize()
        self.library.streamssm_cuda_rows_destroy(self.handle)

    def call(self, B: int, x=None, slots=None, target=None, head: bool = True) -> RowsCall:
        """The arguments of a step, in place unless ``target`` names the next (conv, ssm)."""
        stack, (conv, ssm) = self.stack, target or (self.stack.conv, self.stack.ssm)
        tensors = (self.tokens if x is None else None, x, slots)
        return RowsCall(
            B, *(None if t is None else t.data_ptr() for t in tensors),
            stack.conv.data_ptr(), conv.data_ptr(), stack.conv.stride(0), stack.conv.stride(1),
            stack.ssm.data_ptr(), ssm.data_ptr(), stack.ssm.stride(0), stack.ssm.stride(1),
            self.residual.data_ptr(), self.logits.data_ptr() if head else None,
        )  # fmt: skip

    def step(self, call: RowsCall) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        self._check(self.library.streamssm_cuda_rows_step(self.handle, ctypes.byref(call), stream))


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return error if np.isfinite(got).all() else float("nan")


def error_of(rows: Rows, B: int, checked: list[int]) -> float:
    """One step of B rows on fresh tokens, from the states as they are: the worst relative error of the logits
    and of a layer's states on the rows ``checked``."""
    stack = rows.stack
    rows.tokens.random_(stack.vocabulary)
    states = [
        {"conv": _f64(conv[checked]), "ssm": _f64(ssm[checked])}
        for conv, ssm in zip(stack.conv, stack.ssm, strict=True)
    ]
    rows.logits.fill_(float("nan")), rows.residual.fill_(float("nan"))
    rows.step(rows.call(B))
    torch.cuda.synchronize()
    x = np.concatenate([stack.input_of(int(token)) for token in rows.tokens[checked]])
    logits, after = stack.reference_step(x, states)
    worst = relative(_f64(rows.logits[checked]), logits)
    for conv, ssm, state in zip(stack.conv, stack.ssm, after, strict=True):
        worst = max(worst, relative(_f64(ssm[checked]), state["ssm"]))
        worst = max(worst, relative(_f64(conv[checked]), state["conv"]))
    return worst if not rows.logits[:B].isnan().any() else float("nan")
