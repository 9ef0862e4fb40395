"""The wheel holds the library, runs where there is no compiler, and is made without one too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from streamssm.native.library import _FILE, Library

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "examples" / "audio" / "speech.wav"


def build_wheel(source: Path, out: Path, **environment: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source]
    subprocess.run(command, check=True, env=os.environ | environment)
    (wheel,) = out.glob("*.whl")
    return wheel


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git knows of this folder, less what a build leaves in it."""
    copy = tmp_path_factory.mktemp("source") / "streamssm"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "tests", "__pycache__", "benchmarks")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def test_wheel_with_library_needs_no_compiler(source: Path, library: Library, tmp_path: Path) -> None:
    wheel = build_wheel(source, tmp_path / "wheel")
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    assert f"streamssm/native/{_FILE}" in members(wheel)
    native = [name for name in members(wheel) if name.endswith((".h", ".cpp", ".cu", ".cuh", ".a", ".o"))]
    bundled = tuple(
        f"streamssm/kernels/{room}/" for room in ("cuda", "tensorrt")
    )  # for devices that build their own
    assert not [name for name in native if not name.startswith(bundled)]
    assert {
        f"{bundled[1]}CMakeLists.txt",
        f"{bundled[1]}plugin.h",
        f"{bundled[0]}selective_scan.cu",
    } <= members(wheel)

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    programs, empty = tmp_path / "bare" / "bin", tmp_path / "empty"
    empty.mkdir()
    environment = {"PATH": str(empty), "HOME": str(tmp_path)} | pip_settings()
    pip = [programs / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", wheel], check=True, env=environment)

    def run(*arguments: object) -> str:
        command = [programs / "streamssm", *arguments]
        return subprocess.run(
            command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True
        ).stdout

    assert "native (" in run("info", "vad")
    here = [sys.executable, "-m", "streamssm", "run", "vad", SPEECH]
    assert (
        run("run", "vad", SPEECH) == subprocess.run(here, check=True, capture_output=True, text=True).stdout
    )


def test_wheel_without_a_compiler_is_pure(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    wheel = build_wheel(source, tmp_path / "wheel", PATH=str(empty), CXX="", CC="")
    assert wheel.stem.endswith("-py3-none-any")
    assert not [name for name in members(wheel) if name.endswith((".so", ".dylib", ".dll"))]
    assert "streamssm/native/library.py" in members(wheel)
    assert {f"streamssm/serving/page/{name}" for name in ("index.html", "app.js", "style.css")} <= members(
        wheel
    )


def pip_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
