"""Bundles: what a device needs to build an engine for itself, and to know that it is right.

::

    vad.orin-nano/
      bundle.json          what it is for, with a sha256 of every other file: :class:`BundleRecord`
      model-10.3.onnx      the model as TensorRT 10.3 reads it; one file for each dialect
      manifest.json        as in an engine folder, as is
      golden.safetensors
      kernels/             sources of the plugins
      plugins/             the same, cross-built, where that was possible
      build.sh             builds the plugins, then runs build.py
      build.py, compare.py, local.py    build the engine, compare it, write engine.json
      README.md

When ``build.sh`` has said OK, the folder is an engine folder too, and ``streamssm.load`` opens it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from streamssm.errors import ExportError, IntegrityError, ManifestError, ModelFileError, OutputError
from streamssm.manifest import Count, Manifest, decode_manifest
from streamssm.tensorrt.bundle_text import ENGINE, PLUGINS, build_script, readme
from streamssm.tensorrt.folder import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    Digest,
    EngineRecord,
    Name,
    Precision,
    Profile,
    bound_states,
    file_digest,
    is_engine_file,
    put_in_place,
)
from streamssm.tensorrt.opening import source_of
from streamssm.tensorrt.verify import BOUNDS

if TYPE_CHECKING:
    from streamssm.onnx_file import ModelFile
    from streamssm.tensorrt.profiles import Calls
    from streamssm.tensorrt.targets import Target

RECORD, BUILD = "bundle.json", "build.sh"
_SOURCES = ("*.cu", "*.cuh", "*.h", "*.cpp", "*.cmake", "*.map", "CMakeLists.txt")
_SCRIPTS = {"build_on_device.py": "build.py", "compare_on_device.py": "compare.py", "local.py": "local.py"}
#: where kernels/tensorrt/cross.sh leaves the library
_CROSS_BUILT = Path("build") / "tensorrt-aarch64" / "libstreamssm_tensorrt.so"
#: what no bundle can do without
_NEEDED = frozenset({BUILD, MANIFEST, *_SCRIPTS.values()})

#: a file in the folder or in one below it: no part of it is ".." or hidden
Place = Annotated[str, msgspec.Meta(pattern=r"^(?!\.)[A-Za-z0-9_.+-]+(/(?!\.)[A-Za-z0-9_.+-]+)*$")]


class Packed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle."""

    size: int
    sha256: Digest


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An engine to be built, the ONNX file that it is built of, and the blocks of its profiles."""

    engine: Name
    onnx: Name
    blocks: tuple[Count, ...]


class BundleRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``bundle.json``.

    ``engine`` is what will be engine.json, without what only the device knows. ``dialects`` holds, for each
    least version of TensorRT, the graphs to build; ``batch`` least, usual and most sequences, ``bound`` the
    largest relative difference from the golden vectors; ``command`` writes the bundle again.
    """

    format: int
    engine: EngineRecord
    dialects: dict[str, tuple[Graph, ...]]
    batch: tuple[Count, Count, Count]
    bound: float
    command: str
    files: dict[Place, Packed]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files are all there and of the recorded hash."""

    path: Path
    record: BundleRecord
    manifest: Manifest

    @property
    def cross_built(self) -> bool:
        """Whether the plugins are there as a library too."""
        return PLUGINS in self.record.files


#: what building leaves in a bundle, beside the files of an engine folder
_BUILT = {"__pycache__", "build", "plugins", "timing.cache"}


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with a ``bundle.json``."""
    return (Path(path) / RECORD).is_file()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and verify every file in it.

    Raises:
        ModelFileError: no bundle, a file is missing, or the record contradicts itself.
        ManifestError: the manifest cannot be decoded.
        IntegrityError: a file is not of the recorded size or sha256, or of another model.
    """
    folder = Path(path)
    record = _read_record(folder / RECORD)
    for name, packed in record.files.items():
        _check(folder / name, packed, record)
    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes())
    except ManifestError as error:
        raise ManifestError(f"{folder / MANIFEST}: {error}") from error
    if manifest.sha256 != record.engine.model_sha256:
        raise IntegrityError(
            f"{folder} holds the manifest of model {manifest.sha256[:16]}... and is a bundle of "
            f"{record.engine.model_sha256[:16]}...; write it again: {record.command}"
        )
    return Bundle(folder, record, manifest)


def _read_record(path: Path) -> BundleRecord:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=BundleRecord)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}; write the bundle again") from error
    if record.format != FORMAT:
        raise ModelFileError(
            f"{path} has format {record.format}, this version reads {FORMAT}; upgrade streamssm"
        )
    graphs = {graph.onnx for graphs in record.dialects.values() for graph in graphs}
    missing = sorted((_NEEDED | graphs) - record.files.keys())
    if missing or not graphs:
        raise ModelFileError(
            f"{path} has no hash of {', '.join(missing) or 'any graph'}; write the bundle again: "
            f"{record.command}"
        )
    return record


def _check(path: Path, packed: Packed, record: BundleRecord) -> None:
    try:
        plain = path.is_file() and not path.is_symlink()
        found = (path.stat().st_size, file_digest(path)) if plain else None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if found is None:
        raise ModelFileError(
            f"{path} is missing or no plain file; copy the bundle again, or: {record.command}"
        )
    if found != (packed.size, packed.sha256):
        raise IntegrityError(
            f"{path} is not the file that was packed; copy the bundle again, or write it anew: "
            f"{record.command}"
        )


def write_bundle(
    file: ModelFile,
    target: Target,
    output: Path,
    calls: Calls,
    precision: Precision = "fp32",
    plugins: bool = True,
) -> Bundle:
    """Write a bundle as a whole or not at all, over an older one of that name.

    Raises:
        ExportError: the model has what TensorRT cannot run, or the sources of the plugins are not here.
        OutputError: ``output`` is something else, or cannot be written.
    """
    aim = Path(os.path.abspath(output))
    made = aim.with_name(f".{aim.name}.{secrets.token_hex(6)}")
    try:
        _check_replaceable(aim)
        made.mkdir(parents=True)
        _fill(made, file, target, calls, precision, plugins)
        open_bundle(made)
        put_in_place(made, aim)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return open_bundle(aim)


def _fill(
    folder: Path, file: ModelFile, target: Target, calls: Calls, precision: Precision, plugins: bool
) -> None:
    """Write everything, and what it is last of all."""
    dialects = dict(_write_graphs(folder, file, target, calls, precision, plugins))
    _copy_sources(folder, plugins)
    _write_rest(folder, file)
    engine = _engine(file, target, calls, precision, plugins, dialects)
    (folder / BUILD).write_text(build_script(engine), encoding="utf-8")
    (folder / "README.md").write_text(readme(engine, target.title, tuple(dialects)), encoding="utf-8")
    record = BundleRecord(
        format=FORMAT,
        engine=engine,
        dialects=dialects,
        batch=calls.range,
        bound=max(BOUNDS[precision], 4 * file.manifest.rounding),
        command=engine.command(),
        files={str(path.relative_to(folder)): _packed(path) for path in sorted(_files(folder))},
    )
    data = msgspec.json.format(msgspec.json.encode(record), indent=2)
    (folder / RECORD).write_bytes(data + b"\n")


def _check_replaceable(path: Path) -> None:
    """Refuse to write over anything but a bundle, built or not, for all that is in the folder goes."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is no folder; name one that does not exist yet")
    found = sorted(path.iterdir()) if path.exists() else []
    if not found:
        return
    try:
        ours = {Path(name).parts[0] for name in _read_record(path / RECORD).files} | {RECORD} | _BUILT
    except ModelFileError:  # of another program, or damaged
        ours = set()
    foreign = [entry.name for entry in found if entry.name not in ours and not is_engine_file(entry)]
    if foreign or not ours:
        name = (foreign or [found[0].name])[0]
        raise OutputError(
            f"{path} is a folder of something else, with {name}; name one that does not exist yet"
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _packed(path: Path) -> Packed:
    return Packed(path.stat().st_size, file_digest(path))


def _write_graphs(
    folder: Path, file: ModelFile, target: Target, calls: Calls, precision: Precision, plugins: bool
) -> Iterator[tuple[str, tuple[Graph, ...]]]:
    """The model in every dialect that a version of the target wants, equal files once."""
    from streamssm.tensorrt.dialect import to_dialect

    known: dict[bytes, str] = {}
    batch = 1 if calls.batch == 1 else None
    for version in sorted(target.versions, key=lambda text: [int(part) for part in text.split(".")]):
        graphs = []
        for engine, blocks in _engines(calls, plugins):
            block = None if plugins else blocks[0]
            data = to_dialect(file, version, plugins, precision=precision, block=block, batch=batch)
            suffix = "" if plugins or len(calls.blocks) == 1 else f".b{blocks[0]}"
            name = known.setdefault(data, f"model-{version}{suffix}.onnx")
            (folder / name).write_bytes(data)
            graphs.append(Graph(engine, name, blocks))
        yield version, tuple(graphs)


def _engines(calls: Calls, plugins: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Names of the engines, and the blocks of each: native operators are for one block."""
    if plugins or len(calls.blocks) == 1:
        return [("model.engine", calls.blocks)]
    return [(f"model.b{block}.engine", (block,)) for block in calls.blocks]


def _copy_sources(folder: Path, plugins: bool) -> None:
    """The sources of the plugins, and the library if it was cross-built beside them; and what runs engines
    for a Python that TensorRT has no module for."""
    root = _source_root()
    if root is None:
        if plugins:
            raise ExportError(_NO_SOURCES)
        return
    for name in ("cuda", "tensorrt", ENGINE) if plugins else (ENGINE,):
        (folder / "kernels" / name).mkdir(parents=True)
        for pattern in _SOURCES:
            for path in sorted((root / name).glob(pattern)):
                shutil.copyfile(path, folder / "kernels" / name / path.name)
    built = root.parent / _CROSS_BUILT
    if plugins and built.is_file():
        (folder / PLUGINS).parent.mkdir()
        shutil.copyfile(built, folder / PLUGINS)


_NO_SOURCES = (
    "this installation has no sources of the plugins, which the device has to build; write the bundle from a "
    "wheel or a checkout of the repository, or without them: --plugins off"
)


def _source_root() -> Path | None:
    """The folder ``kernels`` with the sources; an editable installation has two."""
    import streamssm.kernels  # type: ignore[import-untyped]

    places = map(Path, streamssm.kernels.__path__)
    return next((place for place in places if (place / "tensorrt" / "CMakeLists.txt").is_file()), None)


def _write_rest(folder: Path, file: ModelFile) -> None:
    (folder / MANIFEST).write_text(file.manifest.encode() + "\n", encoding="utf-8")
    if file.golden is not None:
        (folder / GOLDEN).write_bytes(file.golden)
    here = Path(__file__).parent
    for source, name in _SCRIPTS.items():
        shutil.copyfile(here / source, folder / name)


def _engine(
    file: ModelFile,
    target: Target,
    calls: Calls,
    precision: Precision,
    plugins: bool,
    dialects: Mapping[str, tuple[Graph, ...]],
) -> EngineRecord:
    from importlib.metadata import version

    manifest, own = file.manifest, version("streamssm")
    return EngineRecord(
        format=FORMAT,
        name=manifest.name,
        target=target.name,
        kind=target.kind,
        version="",
        sm=target.sm,
        precision=precision,
        plugins=plugins,
        plugin_version=own if plugins else "",
        profiles=tuple(
            Profile(graph.engine, index, block, calls.range)
            for graph in next(iter(dialects.values()))
            for index, block in enumerate(graph.blocks)
        ),
        engines=(),
        input=manifest.input.name,
        outputs=tuple(output.name for output in manifest.outputs),
        states=bound_states(manifest),
        model_sha256=manifest.sha256,
        source=source_of(file.path),
        producer=f"streamssm {own}",
    )
