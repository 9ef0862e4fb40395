"""From a graph and what it says about itself to the bytes of a file. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from streamssm.errors import ExportError, OutputError
from streamssm.export.certify import Golden
from streamssm.manifest import GOLDEN_KEY, MANIFEST_KEY, Manifest
from streamssm.onnx_file import seal

MAX_BYTES = 2**31 - 1


def serialise(proto: onnx.ModelProto, manifest: Manifest, golden: Golden | None) -> bytes:
    """The file's bytes, sealed with their own hash. The metadata of ``proto`` is replaced.

    Raises:
        ExportError: the model is larger than one file can be.
    """
    del proto.metadata_props[:]
    sample = {} if golden is None else {GOLDEN_KEY: golden.encode(manifest)}
    onnx.helper.set_model_props(proto, {MANIFEST_KEY: manifest.encode(), **sample})
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(
            f"the model takes {proto.ByteSize()} bytes, one file holds {MAX_BYTES}; use a smaller model"
        )
    return seal(proto.SerializeToString(deterministic=True))


def require_writable(path: Path) -> None:
    """Refuse, before any work, a file whose folder is missing or read-only.

    Raises:
        OutputError: it is.
    """
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write to {path.parent}: create the folder or choose another")
