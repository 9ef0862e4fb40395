"""Where there is no GPU: a stand-in for CUDA and one for TensorRT, and engine folders for them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from streamssm.manifest import Manifest
from streamssm.onnx_file import ModelFile
from streamssm.tensorrt.folder import FORMAT, EngineRecord, Profile, bound_states, engine_file, write_folder

HERE = Path(__file__).parent / "standin"
SM = 87


def build_cuda(folder: Path) -> Path:
    """The stand-in for libcudart and libcuda, under both names; skips where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("the stand-in for CUDA needs a C++ compiler")
    library = folder / "libcudart.so.13"
    source = os.fspath(HERE / "cuda.cpp")
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    shutil.copyfile(library, folder / "libcuda.so.1")
    return library


def engine_record(
    file: ModelFile, version: str, batch: int, blocks: Sequence[int], **changes: Any
) -> EngineRecord:
    manifest = file.manifest
    fields: dict[str, Any] = {
        "format": FORMAT,
        "name": manifest.name,
        "target": "orin-nano",
        "kind": "tensorrt",
        "version": version,
        "sm": SM,
        "precision": "fp32",
        "plugins": False,
        "plugin_version": "",
        "profiles": tuple(
            Profile("model.engine", index, block, (1, batch, batch)) for index, block in enumerate(blocks)
        ),
        "engines": (),
        "input": manifest.input.name,
        "outputs": tuple(output.name for output in manifest.outputs),
        "states": bound_states(manifest),
        "model_sha256": manifest.sha256,
        "source": file.path.name,
    }
    return EngineRecord(**(fields | changes))


def write_engine(
    folder: Path, file: ModelFile, module: Any, blocks: Sequence[int], batch: int = 4, **changes: Any
) -> Path:
    """An engine folder of the stand-in: the model's own file, with a profile for each block."""
    import msgspec

    data = module.pack(file.path.read_bytes(), [profile(file.manifest, block, batch) for block in blocks])

    def make(made: Path) -> EngineRecord:
        (made / "model.engine").write_bytes(data)
        record = engine_record(file, module.__version__, batch, blocks, **changes)
        return msgspec.structs.replace(record, engines=(engine_file(made / "model.engine", 1.5),))

    write_folder(folder, make, file.manifest, file.golden)
    return folder


def profile(manifest: Manifest, block: int, batch: int) -> dict[str, list[list[int]]]:
    spans = {manifest.input.name: [[rows, block, *manifest.input.shape] for rows in (1, batch, batch)]}
    for state in manifest.states:
        if 0 in state.shape:
            continue
        spans[state.name] = [[rows, *state.shape] for rows in (1, batch, batch)]
    return spans


def use_cuda(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """Let the CUDA runtime of this process be the stand-in."""
    from streamssm.backends import cudart

    runtime = cudart.Cudart(ctypes.CDLL(os.fspath(library)))
    monkeypatch.setattr(cudart, "cudart", lambda: runtime)
