"""What a model can be built for, and what is published about the devices.

A *target* is what an engine is built for: a kind of GPU (``sm``), a runtime and its versions. A *device*
is a thing that can be bought, of which a plan needs memory, bandwidth and arithmetic. A target of several
cards, such as ``rtx-40``, is planned for that of class 60; name the card for another.

Arithmetic is computed from multiprocessors and clock, 128 float32 multiply-adds a multiprocessor and cycle;
half precision on tensor cores, dense and summed in float32, is a fixed multiple of it, for each
architecture. Sources of these factors:
  sm_86, 89, 120 (GeForce): twice float32. NVIDIA Ampere GA102, Ada and RTX Blackwell whitepapers, tables of
    GeForce RTX 3090, 4090 and 5090 ("Peak FP16 Tensor TFLOPS with FP32 Accumulate" against "Peak FP32").
  sm_87 (Orin): eight times. "33 TOPS INT8 dense, 17 TFLOPS FP16" of a Jetson Orin Nano Super with 2.09 of
    float32:
    https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/
  sm_110 (Thor): 32 times; an eighth of the 2,070 sparse FP4 TFLOPS of a T5000, with 8.06 float32:
    https://huggingface.co/hardware/jetson-t5000 (258.5)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from streamssm.errors import BackendError, UsageError

Kind = Literal["tensorrt", "tensorrt_rtx"]

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """What is published about a device. ``memory`` in bytes, ``bandwidth`` in bytes a second, ``clock`` in
    Hz; ``shared``: processor and GPU use the same memory. ``sources`` are addresses."""

    name: str
    title: str
    sm: int
    memory: int
    bandwidth: float
    multiprocessors: int
    clock: float
    half: float
    shared: bool
    sources: tuple[str, ...]

    @property
    def float32(self) -> float:
        """Floating-point operations a second, outside of tensor cores."""
        return 2 * 128 * self.multiprocessors * self.clock

    def compute(self, dtype: str) -> float:
        """Floating-point operations a second of matrix products of this type."""
        return self.float32 * (1.0 if dtype == "float32" else self.half)


@dataclass(frozen=True)
class Target:
    """What an engine is built for.

    ``sm`` is the compute capability as two or three digits: 87 for 8.7. ``versions`` are the TensorRT
    versions that are found on it, the one that is taken for granted first. ``on_device``: the engine has to
    be built there, and ``export`` writes a bundle. ``device`` names the entry of :data:`DEVICES` that stands
    for it, if there is one.
    """

    name: str
    sm: int
    kind: Kind
    versions: tuple[str, ...]
    on_device: bool
    device: str | None
    title: str

    @property
    def jetson(self) -> bool:
        """Whether it is a Jetson module."""
        return self.sm in (87, 110)


_ORIN_SUPER = "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"
_ORIN_NX = "https://github.com/icub-tech-iit/cad-libraries/files/13056089/JETSON-ORIN-NX-DATASHEET.pdf"
_ORIN = "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
_ORIN_BRIEF = "https://www.nvidia.com/content/dam/en-zz/Solutions/gtcf21/jetson-orin/nvidia-jetson-agx-orin-technical-brief.pdf"
_THOR = "https://developer.ridgerun.com/wiki/index.php/NVIDIA_Jetson_AGX_Thor/Introduction/SoM_Overview"
_THOR_SMS = (
    "https://forums.developer.nvidia.com/t/"
    "clarification-on-cuda-core-and-tensor-core-counts-for-jetson-agx-thor/356355"
)
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_RTX_4090 = "https://www.thefpsreview.com/gpu-family/nvidia-geforce-rtx-4090-gpu-family-specifications"
_RTX_5090 = (
    "https://www.libertify.com/interactive-library/nvidia-rtx-blackwell-gpu-architecture-neural-rendering/"
)
_ORIN_NANO = (
    "https://www.brojogopalsapui.com/ai-foundations/sub_contents/AI_hardware/jetson_orin_nano_light.html"
)
_H100_MEMORY = "https://github.com/scaleway/docs-content/pull/5834"
_RTX_4060 = "https://fpsbench.com/compare/gpu/nvidia-geforce-rtx-4060-vs-nvidia-t600"
_RTX_5060 = "https://pcspecchart.com/pc_parts/gpu/74"
_RTX_3060 = "https://pcpartdb.com/gpus/view/nvidia-geforce-rtx-3060-12-gb-ga104"
_H100 = "https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306"

#: GiB, GB/s, multiprocessors, GHz, half precision over float32. Clocks and bandwidth of a Jetson are those of
#: its highest power mode (MAXN; of the Orin Nano Super, of the Orin NX the one of its data sheet, before
#: there was Super), clocks of a card are boost clocks.
_ROWS: tuple[tuple[str, str, int, int, float, int, float, float, bool, tuple[str, ...]], ...] = (
    (
        "orin-nano",
        "Jetson Orin Nano 8 GB, Super mode",
        87,
        8,
        102,
        8,
        1.02,
        8,
        True,
        (_ORIN_SUPER, _ORIN_NANO),
    ),
    ("orin-nx", "Jetson Orin NX 16 GB, not Super", 87, 16, 102.4, 8, 0.918, 8, True, (_ORIN_NX, _ORIN)),
    ("orin-agx", "Jetson AGX Orin 64 GB", 87, 64, 204.8, 16, 1.3, 8, True, (_ORIN_BRIEF, _ORIN)),
    ("thor", "Jetson AGX Thor, T5000 128 GB", 110, 128, 273, 20, 1.575, 32, True, (_THOR, _THOR_SMS)),
    ("rtx-3060", "GeForce RTX 3060 12 GB", 86, 12, 360, 28, 1.777, 2, False, (_RTX_3060, _AMPERE)),
    ("rtx-3090", "GeForce RTX 3090 24 GB", 86, 24, 936, 82, 1.695, 2, False, (_AMPERE,)),
    ("rtx-4060", "GeForce RTX 4060 8 GB", 89, 8, 272, 24, 2.46, 2, False, (_RTX_4060, _ADA)),
    ("rtx-4090", "GeForce RTX 4090 24 GB", 89, 24, 1008, 128, 2.52, 2, False, (_RTX_4090, _ADA)),
    ("rtx-5060", "GeForce RTX 5060 8 GB", 120, 8, 448, 30, 2.497, 2, False, (_RTX_5060, _BLACKWELL)),
    ("rtx-5090", "GeForce RTX 5090 32 GB", 120, 32, 1792, 170, 2.407, 2, False, (_RTX_5090, _BLACKWELL)),
    ("h100", "H100 SXM 80 GB", 90, 80, 3350, 132, 1.98, 14.8, False, (_H100, _H100_MEMORY)),
)

DEVICES: dict[str, Device] = {
    name: Device(name, title, sm, memory * GIB, speed * 1e9, count, clock * 1e9, half, shared, sources)
    for name, title, sm, memory, speed, count, clock, half, shared, sources in _ROWS
}

#: Versions of TensorRT and CUDA on Jetson, and where they are stated:
#:   JetPack 6.2: 10.3, CUDA 12.6  https://docs.pytorch.org/TensorRT/_sources/getting_started/jetpack.rst.txt
#:   JetPack 7.0: 10.13, CUDA 13.0  https://developer.nvidia.com/embedded/jetpack/downloads/archive-7.0.md
#:   JetPack 7.2 on Orin: 10.16, CUDA 13.2  https://github.com/Shattered217/Jetson-Orin-Wheels
#:   TensorRT 11.4.1 is the first 11.x for JetPack (7.2.2 and later)
#:     https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html
_ORIN_VERSIONS = ("10.3", "10.16")
_THOR_VERSIONS = ("10.13", "10.16")

#: compute capabilities that TensorRT-RTX compiles for, without a GPU
#: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html
RTX_SMS = (75, 80, 86, 89, 120, 121)
_RTX_VERSIONS = ("1.7", "1.5")
#: where an engine for any other GPU is built
_PC_VERSIONS = ("11.4", "10.16")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("orin-nano", 87, "tensorrt", _ORIN_VERSIONS, True, "orin-nano", "Jetson Orin Nano"),
        Target("orin-nx", 87, "tensorrt", _ORIN_VERSIONS, True, "orin-nx", "Jetson Orin NX"),
        Target("orin-agx", 87, "tensorrt", _ORIN_VERSIONS, True, "orin-agx", "Jetson AGX Orin"),
        Target("thor", 110, "tensorrt", _THOR_VERSIONS, True, "thor", "Jetson AGX Thor"),
        Target("rtx-30", 86, "tensorrt_rtx", _RTX_VERSIONS, False, "rtx-3060", "GeForce RTX 30 series"),
        Target("rtx-40", 89, "tensorrt_rtx", _RTX_VERSIONS, False, "rtx-4060", "GeForce RTX 40 series"),
        Target("rtx-50", 120, "tensorrt_rtx", _RTX_VERSIONS, False, "rtx-5060", "GeForce RTX 50 series"),
    )
}

_SM = re.compile(r"sm_?(\d{2,3})")
#: the first and the last compute capability that there is code for
_FIRST, _LAST = 75, 121


def names() -> Sequence[str]:
    """What ``--target`` of ``export`` accepts; ``sm_XX`` stands for any compute capability."""
    return (*TARGETS, "sm_XX", "local")


def find_target(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: there is none.
        BackendError: it is ``local``, and this machine has no GPU.
    """
    if name == "local":
        return _local()
    found, number = TARGETS.get(name), _SM.fullmatch(name)
    if found is not None:
        return found
    if number is None or not _FIRST <= int(number[1]) <= _LAST:
        raise UsageError(
            f"there is no target {name!r}; choose one of {', '.join(names())}, XX from {_FIRST} to {_LAST}"
        )
    return by_sm(int(number[1]))


def by_sm(sm: int) -> Target:
    """The target of a compute capability: TensorRT-RTX where it compiles for it, else TensorRT, with which
    only a GPU of this kind can build."""
    name = f"sm_{sm}"
    if sm in RTX_SMS:
        return Target(
            name, sm, "tensorrt_rtx", _RTX_VERSIONS, False, None, f"GPUs of compute capability {sm}"
        )
    like = {87: _ORIN_VERSIONS, 110: _THOR_VERSIONS}.get(sm, _PC_VERSIONS)
    return Target(name, sm, "tensorrt", like, True, None, f"GPUs of compute capability {sm}")


def _local() -> Target:
    """The GPU of this machine, for which TensorRT itself can build here."""
    from streamssm.tensorrt.local import compute_capability

    sm = compute_capability()
    if sm is None:
        raise BackendError(
            "this machine has no NVIDIA GPU to build for; name a target: " + ", ".join(list(TARGETS))
        )
    return replace(by_sm(sm), name="local", on_device=False, title=f"the GPU of this machine, sm_{sm}")


def find_device(name: str) -> Device:
    """The device that a plan is made for: by its own name, or by that of a target.

    Raises:
        UsageError: there is none.
    """
    target = TARGETS.get(name)
    found = DEVICES.get(target.device or "" if target is not None else name)
    if found is None:
        known = ", ".join(dict.fromkeys([*TARGETS, *DEVICES, "local-cpu"]))
        raise UsageError(f"nothing is known about the device {name!r}; there are {known}")
    return found
