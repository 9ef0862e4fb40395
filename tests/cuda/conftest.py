"""The GPU tests: skipped, with the reason, where there is no GPU."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "benchmarks", ROOT / "tests" / "export"):
    sys.path.append(str(folder))


def _missing() -> str | None:
    torch = pytest.importorskip("torch", reason="the GPU tests need PyTorch to hold device memory")
    return None if torch.cuda.is_available() else "no NVIDIA GPU that PyTorch can use"


@pytest.fixture(scope="session")
def library():
    """The CUDA library by itself."""
    reason = _missing()
    if reason:
        pytest.skip(reason)
    import gpu_models

    try:
        return gpu_models.load()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no CUDA library: {error}")


@pytest.fixture(scope="session")
def backend():
    """The backend, where it can be used."""
    from streamssm.backends.cuda import unavailable

    reason = unavailable()
    if reason is not None:
        pytest.skip(f"no GPU for ONNX Runtime: {reason}")


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Small models by name, exported once; or those that STREAMSSM_CUDA_MODELS names a folder of."""
    import gpu_files

    return gpu_files.model_files(tmp_path_factory.mktemp("models"))
