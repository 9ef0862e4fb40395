"""What a model file asks of the ONNX Runtime that is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from streamssm.errors import BackendError
from streamssm.manifest import Manifest

#: 4-bit weights run on every version that this package admits. 8-bit ones came to x86-64 with 1.22 and
#: to ARM with 1.23: a version for both, so that a file which runs here runs there
SINCE: Mapping[str, tuple[int, int]] = {"int8": (1, 23)}


def check_version(path: Path, manifest: Manifest, version: str) -> None:
    """Refuse a model whose weights this version of ONNX Runtime cannot multiply with.

    Raises:
        BackendError: it is too old; says which one is needed.
    """
    dtype = manifest.weights.dtype
    needed = SINCE.get(dtype)
    if needed is not None and version_of(version) < needed:
        least = ".".join(map(str, needed))
        raise BackendError(
            f"{path} holds {dtype} weights, which need onnxruntime {least} or later; {version} is installed: "
            f'pip install "onnxruntime>={least}"'
        )


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor; (0, 0) for a text that is no version."""
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return (0, 0)
