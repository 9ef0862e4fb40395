"""``streamssm export DIR``: a checkpoint folder to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamssm.manifest import Manifest


def export_checkpoint(folder: Path, output: Path, window: int | None, **said: Any) -> Manifest:
    """Write the model of a checkpoint folder in float32; ``said`` goes to ``export``.

    Raises:
        ExportError: the folder is no checkpoint that is known, or does not fit its config.
    """
    from importlib import import_module

    from streamssm.cli.export import exporter

    package = exporter()
    checkpoint = import_module("streamssm.export.checkpoints").load_checkpoint(folder, window=window)
    options = {**checkpoint.export_options(), **said}
    manifest: Manifest = package.export(checkpoint.layer, output, **options)
    return manifest
