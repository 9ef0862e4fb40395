from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import sys
from pathlib import Path

import native_build
import pytest

# the operators' cases are shared with the exporter's tests
sys.path.append(str(Path(__file__).parents[1] / "export"))


def shared_build(factory: pytest.TempPathFactory) -> Path:
    """One build for all workers of pytest-xdist, which share the parent of their folders."""
    folder = factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = folder / "kernels.so"
    with (folder / "kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            native_build.build(path, native_build.compiler() or "")
    return path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels with their test interface; STREAMSSM_TEST_KERNELS names one built elsewhere."""
    path = os.environ.get("STREAMSSM_TEST_KERNELS")
    if not path and (reason := native_build.reason_not_to_build()):
        pytest.skip(reason)
    return ctypes.CDLL(path or str(shared_build(tmp_path_factory)))


@pytest.fixture(scope="session", params=native_build.INSTRUCTION_SETS.get(platform.machine(), ["none"]))
def native(library: ctypes.CDLL, request: pytest.FixtureRequest) -> object:
    from native_calls import Native

    found = Native(library, request.param)
    if not found.table.value:
        pytest.skip(f"this processor does not run {request.param}")
    return found
