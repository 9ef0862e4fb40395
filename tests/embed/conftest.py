from __future__ import annotations

import sys
from pathlib import Path

import pytest
from embed_library import Library, build, can_build, onnxruntime_library

# models of every kind are shared with the exporter's and the runtime's tests
for room in ("export", "runtime"):
    sys.path.append(str(Path(__file__).parents[1] / room))


@pytest.fixture(scope="session")
def runtime() -> Path:
    """ONNX Runtime's library."""
    found = onnxruntime_library()
    if found is None:
        pytest.skip("this onnxruntime holds no libonnxruntime.so")
    return found


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the library and the test programs, a release build."""
    if not can_build():
        pytest.skip("no cmake, or no compiler")
    return build("embed")


@pytest.fixture(scope="session")
def embed(built: Path, runtime: Path) -> Library:
    """The library."""
    return Library(built / "kernels/embed/libstreamssm.so", runtime)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exporter's three whole models as files."""
    from models import CONFIGS, export_model

    folder = tmp_path_factory.mktemp("models")
    return {name: export_model(name, folder) for name in CONFIGS}
