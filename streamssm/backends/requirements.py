"""What a model file asks of the ONNX Runtime that is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from streamssm.errors import BackendError
from streamssm.manifest import Manifest

#: 4-bit weights run on every version that this package admits. 8-bit ones came to x86-64 with 1.22 and
#: to ARM with 1.23: a version for both, so that a file which runs here runs there
SINCE: Mapping[str, tuple[int, int]] = {"int8": (1, 23)}

#: a model in memory refers to tensors in a file
MAPS_SINCE = (1, 21)


def check_version(path: Path, manifest: Manifest, version: str) -> None:
    """Refuse a model whose weights this version of ONNX Runtime cannot multiply with, or find.

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
    if manifest.external and not maps_tensors(version):
        least = ".".join(map(str, MAPS_SINCE))
        raise BackendError(
            f"{path} keeps its weights in {manifest.external[0].name}, which needs onnxruntime {least} or "
            f'later; {version} is installed: pip install "onnxruntime>={least}"'
        )


def maps_tensors(version: str) -> bool:
    """Whether this version of ONNX Runtime finds tensors in a file for a model that is in memory."""
    return version_of(version) >= MAPS_SINCE


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor; (0, 0) for a text that is no version."""
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return (0, 0)
