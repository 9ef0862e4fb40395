"""The CUDA sources compile where nvcc is, GPU or not; and what the library says without one."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "kernels/cuda").glob("*.cu")), *sorted((ROOT / "kernels/ort").glob("cuda_*.cpp"))]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_compiles(source, tmp_path):
    """For one kind of GPU, to PTX: what remains is the assembler's."""
    target = ["--ptx", "-arch=compute_90"] if source.suffix == ".cu" else ["-c", "-O0"]
    command = ["nvcc", "-std=c++17", *target, str(source), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_nvcc
@pytest.mark.slow
def test_the_library_describes_itself(tmp_path):
    environment = {**os.environ, "ARCHS": "90", "JOBS": "2"}
    subprocess.run(["sh", "kernels/cuda/build.sh", str(tmp_path)], cwd=ROOT, env=environment, check=True)
    describe = ctypes.CDLL(str(tmp_path / "libstreamssm_cuda.so")).streamssm_cuda_describe
    describe.restype = ctypes.c_char_p
    said = json.loads(describe())
    types = ["float32", "float16", "bfloat16"]
    names = ["CausalConv1d", "LogMel", "SelectiveScan", "SlidingWindowAttention", "StateSpaceDual"]
    assert said["operators"] == dict.fromkeys(names, types)
    assert said["archs"] == "90"
