"""The CUDA library from Python: the structures of api.h and step_api.h, and calls that raise.

Pointers are plain integers (``tensor.data_ptr()``); nothing here knows an array library.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2


def _fields(text: str) -> list[tuple[str, type]]:
    """'a b: c_int64; c: c_float' as ctypes fields."""
    kinds = {"i32": c_int32, "i64": c_int64, "f32": c_float, "ptr": c_void_p}
    parts = (part.split(":") for part in text.split(";"))
    return [(name, kinds[kind.strip()]) for names, kind in parts for name in names.split()]


class ConvCall(Structure):
    """CausalConv1d; see api.h."""

    _fields_ = _fields(
        "batch items: i64; slots lengths: ptr; D K: i64; type silu: i32;"
        "x weight bias state next y: ptr; x_pitch: i64"
    )


class ScanCall(Structure):
    """SelectiveScan; see api.h."""

    _fields_ = _fields(
        "batch items: i64; slots lengths: ptr; D N: i64; type reserved: i32;"
        "x dt B C z A skip dt_bias state next y: ptr; z_pitch bc_pitch: i64"
    )


class DualCall(Structure):
    """StateSpaceDual; see api.h."""

    _fields_ = _fields(
        "batch items: i64; slots lengths: ptr; H P G N: i64; type reserved: i32;"
        "x dt B C A skip state next y: ptr; x_pitch bc_pitch: i64"
    )


class RawSteps(Structure):
    """Step sizes that a StateSpaceDual makes itself; see api.h."""

    _fields_ = _fields("pitch: i64; least most: f32; bias: ptr")


class LowRank(Structure):
    """Step sizes that a SelectiveScan makes itself; see api.h."""

    _fields_ = _fields("R pitch: i64; low weight: ptr")


class NormCall(Structure):
    """The residual stream and its norm; see api.h."""

    _fields_ = _fields("rows width: i64; type: i32; eps: f32; residual added weight y: ptr")


class GateNormCall(Structure):
    """The gated norm of Mamba-2; see api.h."""

    _fields_ = _fields("rows width z_pitch: i64; type: i32; eps: f32; x z weight y: ptr")


class StepSizeCall(Structure):
    """Step sizes; see api.h."""

    _fields_ = _fields("rows H pitch: i64; type: i32; least most: f32; raw bias dt: ptr")


OPERATORS = ("causal_conv1d", "selective_scan", "state_space_dual", "norm", "gate_norm", "step_size")


class MambaLayer(Structure):
    """Weights of a Mamba block; see step_api.h."""

    _fields_ = _fields("norm in_proj x_proj dt_proj out_proj conv_weight conv_bias dt_bias A skip: ptr")


class MambaModel(Structure):
    """A stack of Mamba blocks; see step_api.h."""

    _fields_ = [
        *_fields("layers d_model D N R K vocabulary reserved: i32; eps: f32"),
        ("layer", POINTER(MambaLayer)),
        *_fields("norm embedding: ptr"),
    ]


class Mamba2Layer(Structure):
    """Weights of a Mamba-2 block; see step_api.h."""

    _fields_ = _fields("norm in_proj out_proj conv_weight conv_bias dt_bias A skip gate_norm: ptr")


class Mamba2Model(Structure):
    """A stack of Mamba-2 blocks; see step_api.h."""

    _fields_ = [
        *_fields("layers d_model H P G N K vocabulary: i32; eps dt_least dt_most: f32"),
        ("layer", POINTER(Mamba2Layer)),
        *_fields("norm embedding: ptr"),
    ]


class StepCall(Structure):
    """One item of one stream; see step_api.h. A pool is (state, next, layer_stride, slot_stride)."""

    _fields_ = _fields(
        "token x slot: ptr; conv_state conv_next: ptr; conv_layer conv_slot: i64;"
        "ssm_state ssm_next: ptr; ssm_layer ssm_slot: i64; logits: ptr"
    )


class StackModel(Structure):
    """A run of blocks with its weights in the memory of the host; see stack_api.h."""

    _fields_ = [
        *_fields("kind type layers d_model D N R K H P G inputs outputs reserved: i32"),
        *_fields("eps dt_least dt_most: f32; weights: ptr; bytes: i64; places: ptr; place_count: i64"),
    ]


class StackCall(Structure):
    """Items of some rows through a stack; see stack_api.h. States are arrays of pointers."""

    _fields_ = _fields("batch items: i64; tokens x conv ssm next_conv next_ssm y: ptr; route reserved: i32")


#: what a call of a stack can run on; see Route in stack_api.h
BEST, CHAIN, ONE_LAUNCH, ROWS = range(4)


class Library:
    """The loaded library. Its calls raise RuntimeError with the library's own words."""

    def __init__(self, path: str | Path):
        self._library = ctypes.CDLL(str(path))
        for name in OPERATORS:
            self._declare(name, c_void_p, c_void_p)
        for name in ("state_space_dual_raw", "selective_scan_low_rank"):
            self._declare(name, c_void_p, c_void_p, c_void_p)
        for kind in ("mamba", "mamba2"):
            self._declare(f"{kind}_create", c_void_p, c_void_p)
            self._declare(f"{kind}_step", c_void_p, c_void_p, c_void_p)
            self._declare(f"{kind}_destroy", c_void_p, result=None)
        self._declare("stack_create", c_void_p, c_void_p)
        self._declare("stack_run", c_void_p, c_void_p, c_void_p)
        self._declare("stack_destroy", c_void_p, result=None)
        self._declare("stack_route", c_void_p, result=c_int32)

    def _declare(self, name: str, *arguments: type, result: type | None = c_char_p) -> None:
        function = getattr(self._library, f"streamssm_cuda_{name}")
        function.argtypes, function.restype = arguments, result

    def _call(self, name: str, *arguments: object) -> None:
        reason = getattr(self._library, f"streamssm_cuda_{name}")(*arguments)
        if reason is not None:
            raise RuntimeError(f"{name}: {reason.decode()}")

    def operator(self, name: str, call: Structure, stream: int = 0) -> None:
        """Launch one of OPERATORS."""
        self._call(name, ctypes.byref(call), stream)

    def dual_raw(self, call: DualCall, steps: RawSteps, stream: int = 0) -> None:
        """Launch a StateSpaceDual whose ``dt`` is raw."""
        self._call("state_space_dual_raw", ctypes.byref(call), ctypes.byref(steps), stream)

    def scan_low_rank(self, call: ScanCall, low: LowRank, stream: int = 0) -> None:
        """Launch a SelectiveScan that makes its step sizes; its own ``dt`` is not read."""
        self._call("selective_scan_low_rank", ctypes.byref(call), ctypes.byref(low), stream)

    def create(self, kind: str, model: Structure) -> c_void_p:
        """A resident model; ``kind`` is mamba or mamba2."""
        handle = c_void_p()
        self._call(f"{kind}_create", ctypes.byref(model), ctypes.byref(handle))
        return handle

    def step(self, kind: str, handle: c_void_p, call: StepCall, stream: int = 0) -> None:
        """Launch one step."""
        self._call(f"{kind}_step", handle, ctypes.byref(call), stream)

    def destroy(self, kind: str, handle: c_void_p) -> None:
        """Free a model; no step of it may be under way."""
        getattr(self._library, f"streamssm_cuda_{kind}_destroy")(handle)

    # Stacks.

    def create_stack(self, model: StackModel) -> c_void_p:
        """A resident stack."""
        handle = c_void_p()
        self._call("stack_create", ctypes.byref(model), ctypes.byref(handle))
        return handle

    def run_stack(self, handle: c_void_p, call: StackCall, stream: int = 0) -> int:
        """Launch a call; returns the route it took."""
        self._call("stack_run", handle, ctypes.byref(call), stream)
        return int(self._library.streamssm_cuda_stack_route(handle))

    def destroy_stack(self, handle: c_void_p) -> None:
        """Free a stack; no call of it may be under way."""
        self._library.streamssm_cuda_stack_destroy(handle)
