"""The in-house declaration of ONNX Runtime's ABI is the official one, where that can be read.

On Debian and Ubuntu the header is in libonnxruntime-dev; STREAMSSM_ORT_HEADERS names another folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = "onnxruntime_c_api.h"
FOLDERS = [
    *filter(None, [os.environ.get("STREAMSSM_ORT_HEADERS")]),
    *(f"{root}/include/onnxruntime{sub}" for root in ("/usr", "/usr/local") for sub in ("", "/core/session")),
    "/opt/homebrew/include/onnxruntime",
]


def test_declarations_are_those_of_the_official_header() -> None:
    folder = next((path for path in map(Path, FOLDERS) if (path / HEADER).exists()), None)
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if folder is None or compiler is None:
        pytest.skip("no compiler" if folder else f"no {HEADER} on this machine")
    check = Path(__file__).with_name("abi_check.cpp")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", "-isystem", folder, check]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
