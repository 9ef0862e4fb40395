"""The GPU tests: skipped, with the reason, where there is no GPU."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU, and nvcc or a built CUDA library")


def _missing() -> str | None:
    torch = pytest.importorskip("torch", reason="the GPU tests need PyTorch to hold device memory")
    return None if torch.cuda.is_available() else "no NVIDIA GPU that PyTorch can use"


@pytest.fixture(scope="session")
def library():
    reason = _missing()
    if reason:
        pytest.skip(reason)
    import gpu_models

    try:
        return gpu_models.load()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no CUDA library: {error}")
