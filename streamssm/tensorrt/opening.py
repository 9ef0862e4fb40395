"""An engine folder, or a bundle that is to become one, where a model file is expected."""

from __future__ import annotations

import os
from pathlib import Path

from streamssm.errors import ModelFileError
from streamssm.onnx_file import ModelFile
from streamssm.tensorrt.folder import is_engine_folder, open_folder


def read_engine(path: str | os.PathLike[str]) -> ModelFile:
    """What an engine folder says, as :func:`streamssm.onnx_file.read_model_file` gives it; its ``path`` is
    the folder. Every file in it has been verified.

    Raises:
        ModelFileError: the folder is something else, a bundle, or incomplete.
        ManifestError: the manifest cannot be decoded.
        IntegrityError: a file is not the recorded one.
    """
    from streamssm.tensorrt.bundle import BUILD, is_bundle

    folder = Path(path)
    if is_bundle(folder) and not is_engine_folder(folder):
        raise ModelFileError(
            f"{folder} is a bundle, from which the device builds its own engine; there run: "
            f"sh {folder / BUILD}"
        )
    if not is_engine_folder(folder):
        raise ModelFileError(
            f"{folder} is a folder, neither a model file nor an engine; an engine folder is what "
            "'streamssm export MODEL --format tensorrt --target TARGET' writes"
        )
    found = open_folder(folder)
    return ModelFile(folder, found.manifest, found.golden, {}, frozenset())


def source_of(path: Path) -> str:
    """What ``streamssm export`` is given to find a model again: the name of a built-in one, else that of its
    file."""
    from streamssm.model import built_in_models, find

    built_in = path.stem in built_in_models() and path.resolve() == find(path.stem).resolve()
    return path.stem if built_in else path.name
