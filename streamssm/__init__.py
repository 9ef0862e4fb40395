"""Streaming inference for state-space models: any split of the input gives the same output
as the whole.

    model = streamssm.load("model.onnx")
    stream = model.stream()
    y = stream.push(chunk)      # any length
    tail = stream.flush()

Importing this package imports no backend, no torch and no audio library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamssm import errors
    from streamssm.client import connect
    from streamssm.model import Model, load
    from streamssm.stream import Stream

    __version__: str

__all__ = ["Model", "Stream", "__version__", "connect", "errors", "load"]

_HOMES = {
    "Model": "streamssm.model",
    "load": "streamssm.model",
    "Stream": "streamssm.stream",
    "connect": "streamssm.client",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "errors":
        value = import_module("streamssm.errors")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'streamssm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("streamssm")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"
