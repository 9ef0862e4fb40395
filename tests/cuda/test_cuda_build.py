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


PRETENDED = """#!/bin/sh
# notes what it was asked for, and makes what was to be made
echo "$@" >>"$NVCC_LOG"
case "$*" in *"$NVCC_FAILS "*) exit 1 ;; esac
while [ "$1" != -o ]; do shift; done
: >"$2"
"""


@pytest.fixture
def build(tmp_path):
    """build.sh with a compiler that only notes its calls; gives them, or None if the build failed."""
    compiler, log = tmp_path / "bin/nvcc", tmp_path / "log"
    compiler.parent.mkdir()
    compiler.write_text(PRETENDED)
    compiler.chmod(0o755)

    def call(archs, fails="nothing"):
        log.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{compiler.parent}:{os.environ['PATH']}",
            "ARCHS": archs,
            "JOBS": "3",
            "NVCC_LOG": str(log),
            "NVCC_FAILS": fails,
        }
        command = ["sh", "kernels/cuda/build.sh", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return log.read_text().splitlines() if done.returncode == 0 else None

    return call


def test_objects_for_other_gpus_are_not_linked(build):
    assert len(build("80 90")) > len(SOURCES)
    assert len(build("80 90")) == 1  # links what is there
    again = build("90")
    assert len(again) > len(SOURCES)
    assert not any("compute_80" in line for line in again)


@pytest.mark.parametrize("source", [SOURCES[0], SOURCES[-1]], ids=lambda path: path.name)
def test_a_source_that_fails_is_not_left_out(build, source, tmp_path):
    """Neither is an older object of it linked."""
    assert build("90", source.name) is None
    assert not (tmp_path / "out/libstreamssm_cuda.so").exists()
    assert build("90") is not None
