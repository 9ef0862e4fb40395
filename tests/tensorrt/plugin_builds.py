"""What the plugin tests need: headers and runtimes of TensorRT, and the libraries under test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PLUGINS = ROOT / "kernels" / "tensorrt"
FETCHED = Path(os.environ.get("STREAMSSM_TENSORRT_FETCHED", ROOT / ".cache" / "tensorrt"))
STRICT = [
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Werror",
]


def headers() -> Path:
    """The folder with NvInferRuntime.h, or the test is skipped."""
    given = os.environ.get("STREAMSSM_TENSORRT_INCLUDE")
    folder = Path(given) if given else FETCHED / "headers" / "kernel_lens" / "include" / "tensorrt"
    if not (folder / "NvInferRuntime.h").is_file():
        pytest.skip(f"no headers of TensorRT in {folder}: sh kernels/tensorrt/fetch.sh")
    return folder


def cuda_headers() -> list[Path]:
    """The folders with cuda_runtime_api.h and what it includes, or the test is skipped."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parents[1]]
    places = [[Path(root) / "include"] for root in roots if root]
    places.append([FETCHED / name / "nvidia" / "cu13" / "include" for name in ("cuda-runtime", "cuda-crt")])
    for folders in places:
        if (folders[0] / "cuda_runtime_api.h").is_file():
            return folders
    pytest.skip("no headers of CUDA: sh kernels/tensorrt/fetch.sh, or set CUDA_HOME")


def lean(major: int) -> Path:
    """The lean runtime of a TensorRT, or the test is skipped."""
    path = FETCHED / f"lean-{major}" / "tensorrt_lean_libs" / f"libnvinfer_lean.so.{major}"
    if not path.is_file():
        pytest.skip(f"no {path}: sh kernels/tensorrt/fetch.sh")
    return path


def compile_library(to: Path, sources: list[Path], *options: str) -> Path:
    """A shared library of C++ sources; warnings are errors, those of TensorRT's own headers apart."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    system = [f"-isystem{folder}" for folder in (headers(), *cuda_headers())]
    command = [compiler, *STRICT, *options, *system, *map(str, sources), "-o", str(to), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return to


def build_harness(folder: Path) -> Path:
    """plugin_harness.cpp."""
    return compile_library(folder / "harness.so", [HERE / "plugin_harness.cpp"])


def build_fake(folder: Path) -> Path:
    """The plugins over fake_cuda.cpp."""
    sources = [*sorted(PLUGINS.glob("*.cpp")), HERE / "fake_cuda.cpp"]
    return compile_library(folder / "plugins.so", sources, '-DSTREAMSSM_VERSION="1.2.3"', "-Wl,-z,nodelete")
