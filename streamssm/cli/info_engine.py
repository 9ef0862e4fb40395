"""``streamssm info`` on an engine folder or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from streamssm.manifest import Manifest
    from streamssm.tensorrt.bundle import Bundle
    from streamssm.tensorrt.folder import EngineFolder, EngineRecord

_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def show_folder(path: Path, as_json: bool) -> None:
    """Print what a folder is, after every file in it has been verified.

    Raises:
        ModelFileError: it is neither an engine folder nor a bundle, or not all of one.
        IntegrityError: a file is not the recorded one.
    """
    from streamssm.tensorrt.bundle import is_bundle, open_bundle
    from streamssm.tensorrt.folder import is_engine_folder, open_folder

    if is_engine_folder(path) or not is_bundle(path):
        engine = open_folder(path)
        (_print_json if as_json else _print_table)(_engine(engine))
    else:
        bundle = open_bundle(path)
        (_print_json if as_json else _print_table)(_bundle(bundle))


def _engine(folder: EngineFolder) -> dict[str, Any]:
    record = folder.record
    return {
        "engine": str(folder.path),
        **_common(record, folder.manifest),
        "built by": f"{_TITLES[record.kind]} {record.version}, {record.producer}",
        "built in": f"{sum(file.seconds for file in record.engines):.1f} s",
        "profiles": [
            {
                "block": profile.block,
                "sequences": list(profile.batch),
                "engine": profile.engine,
                "index": profile.index,
            }
            for profile in record.profiles
        ],
        "bytes": record.size,
        "golden vectors": "yes" if folder.golden is not None else "none",
        "here": _fits(record),
    }


def _bundle(bundle: Bundle) -> dict[str, Any]:
    record, files = bundle.record, bundle.record.files
    plugins = "none needed"
    if record.engine.plugins:
        plugins = "sources" + (" and a cross-built library for arm64" if bundle.cross_built else "")
    return {
        "bundle": str(bundle.path),
        **_common(record.engine, bundle.manifest),
        "written by": record.engine.producer,
        "blocks": sorted(
            {block for graphs in record.dialects.values() for g in graphs for block in g.blocks}
        ),
        "sequences": list(record.batch),
        "graphs for": [f"TensorRT {version} and later" for version in record.dialects],
        "plugins packed": plugins,
        "files": len(files),
        "bytes": sum(file.size for file in files.values()),
        "allowed error": record.bound,
        "build it": f"copy it to the device, then: sh {bundle.path}/build.sh",
        "written anew": record.command,
    }


def _common(record: EngineRecord, manifest: Manifest) -> dict[str, Any]:
    plugins = f"plugins {record.plugin_version}" if record.plugins else "TensorRT's own"
    return {
        "model": record.name,
        "target": record.target,
        "sm": record.sm,
        "library": record.kind,
        "precision": f"{record.precision} products, float32 states",
        "operators of ours": plugins,
        "state": f"{manifest.state_bytes} bytes a stream in {len(manifest.states)} tensors",
        "licence": manifest.license or "not stated",
        "source": f"{record.source}, sha256 {record.model_sha256}",
    }


def _fits(record: EngineRecord) -> str:
    """Whether this machine could run it, as far as that is known without loading TensorRT."""
    from importlib.metadata import PackageNotFoundError, version

    from streamssm.tensorrt.local import compute_capability

    sm, package = compute_capability(), record.kind.replace("_", "-")
    if sm is None:
        return "no GPU on this machine"
    if sm != record.sm:
        return f"not for this GPU, sm_{sm}; build one: {record.command(target='local')}"
    try:
        installed = version(package)
    except PackageNotFoundError:
        return (
            f"this GPU; whether {_TITLES[record.kind]} {record.version} is installed shows when it is loaded"
        )
    if installed.split(".")[:2] != record.version.split(".")[:2]:
        again = record.command(target="local")
        return f"this GPU, but {package} {installed} is installed; build it again: {again}"
    return "yes"


def _print_json(report: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps({key.replace(" ", "_"): value for key, value in report.items()}, indent=2))


def _print_table(report: dict[str, Any]) -> None:
    from streamssm.cli.show import show, table

    show(table([], [(key, _text(key, value)) for key, value in report.items()]))


def _text(key: str, value: Any) -> str:
    from streamssm.cli.show import binary_size

    if key == "bytes":
        return binary_size(value)
    if key == "sequences":
        return f"{value[0]} to {value[2]}" if value[2] > 1 else "1"
    if key == "profiles":
        return "; ".join(
            f"blocks of {entry['block']} x {_text('sequences', entry['sequences'])} ({entry['engine']})"
            for entry in value
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
