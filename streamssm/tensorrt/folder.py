"""The engine folder: engines built for one target, and all that a host must know to run them.

::

    vad.rtx-40/
      engine.json          what was built, from what, for which GPU and which TensorRT: :class:`EngineRecord`
      model.engine         one engine, or one for each block: ``model.b16.engine``
      manifest.json        the manifest of the model that it was built from
      golden.safetensors   a sample of input and output, as in the model: :mod:`streamssm.golden`

An engine is bound to a GPU and to a version, and it is read by a library that does not expect a hostile
file: so every file is of the sha256 that the record gives, and lies in the folder itself. (What a bundle
has built on its device records those of the engines; ``bundle.json`` has all others.)
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from streamssm.errors import IntegrityError, ManifestError, ModelFileError, OutputError, UsageError
from streamssm.manifest import Count, Manifest, decode_manifest

FORMAT = 1
RECORD, MANIFEST, GOLDEN = "engine.json", "manifest.json", "golden.safetensors"
ENGINE_SUFFIX = ".engine"

Kind = Literal["tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.+-]{1,200}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class EngineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A built engine: its bare name, bytes, sha256, the seconds that building it took, and how many kernels
    a call of it launches, if that is known."""

    name: Name
    size: Count
    sha256: Digest
    seconds: float
    kernels: int | None = None


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine was optimised for: exactly ``block`` items a call, of ``batch`` sequences, given as
    the least, the usual and the most. ``index`` is its optimisation profile in the engine ``engine``."""

    engine: Name
    index: Annotated[int, msgspec.Meta(ge=0)]
    block: Count
    batch: tuple[Count, Count, Count]


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``engine.json``.

    ``kind`` is the library that runs the engine and ``version`` the one that built it; ``sm`` is the
    compute capability that it was built for, as 89. ``input``, ``outputs`` and ``states`` (name and name of
    the next one) are tensors of the engine; states without elements are none. ``model_sha256`` is the
    sha256 in the model's manifest and ``source`` the name of its file. ``plugin_version`` is that of the
    plugin library that the engine needs, empty without ``plugins``. The sha256 of ``manifest.json`` and of
    ``golden.safetensors`` are None where another record holds them, the latter without such a file too.
    """

    format: int
    name: str
    target: str
    kind: Kind
    version: str
    sm: Count
    precision: Precision
    plugins: bool
    plugin_version: str
    profiles: tuple[Profile, ...]
    engines: tuple[EngineFile, ...]
    input: str
    outputs: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    model_sha256: Digest
    source: str
    producer: str = ""
    manifest_sha256: Digest | None = None
    golden_sha256: Digest | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks it can run, ascending."""
        return tuple(sorted({profile.block for profile in self.profiles}))

    @property
    def size(self) -> int:
        """Bytes of all engines."""
        return sum(file.size for file in self.engines)

    def command(self, **changes: str) -> str:
        """The ``streamssm export`` command that builds it again, with some options changed: by the name of
        the option, as ``block="1,64"``."""
        said = {
            "target": self.target,
            "precision": self.precision,
            "block": ",".join(map(str, self.blocks)),
            "batch": str(max(profile.batch[2] for profile in self.profiles)),
            "plugins": "on" if self.plugins else "off",
        } | changes
        options = " ".join(f"--{name} {shlex.quote(value)}" for name, value in said.items())
        return f"streamssm export {shlex.quote(self.source)} --format tensorrt {options}"

    def profile(self, block: int, batch: int = 1) -> Profile:
        """The profile that holds such a call.

        Raises:
            UsageError: there is none; says which command builds one.
        """
        fitting = [profile for profile in self.profiles if profile.block == block]
        for profile in fitting:
            if profile.batch[0] <= batch <= profile.batch[2]:
                return profile
        if not fitting:
            blocks = ",".join(map(str, sorted({*self.blocks, block})))
            raise UsageError(
                f"{self.name} was built for {self.target} with blocks of {_listed(self.blocks)} items, not "
                f"{block}; open it with one of those, or build it again: {self.command(block=blocks)}"
            )
        least, most = fitting[0].batch[0], max(profile.batch[2] for profile in fitting)
        raise UsageError(
            f"{self.name} was built for {self.target} and {least} to {most} sequences at once, not {batch}; "
            f"build it again: {self.command(batch=str(max(batch, most)))}"
        )


@dataclass(frozen=True)
class EngineFolder:
    """An opened folder whose files are all there and of the recorded hash. ``golden`` is the sample as
    safetensors bytes, if the model had one."""

    path: Path
    record: EngineRecord
    manifest: Manifest
    golden: bytes | None

    def engine(self, profile: Profile) -> Path:
        """The engine file of a profile."""
        return self.path / profile.engine


def bound_states(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Names of the states that are tensors of an engine, and of what follows them: states without elements
    are none."""
    return tuple((state.name, state.next) for state in manifest.states if 0 not in state.shape)


def is_engine_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with an ``engine.json``."""
    return (Path(path) / RECORD).is_file()


def open_folder(path: str | os.PathLike[str]) -> EngineFolder:
    """Read an engine folder and verify every file in it; no TensorRT is needed.

    Raises:
        ModelFileError: no engine folder, a file is missing or a link, the record contradicts itself.
        ManifestError: the manifest cannot be decoded.
        IntegrityError: a file is not of the recorded size or sha256, or of another model.
    """
    folder = Path(path)
    record = decode_record(_read(folder / RECORD), folder / RECORD)
    text = _read(folder / MANIFEST)
    try:
        manifest = decode_manifest(text)
    except ManifestError as error:
        raise ManifestError(f"{folder / MANIFEST}: {error}") from error
    if manifest.sha256 != record.model_sha256:
        raise IntegrityError(
            f"{folder} holds the manifest of model {manifest.sha256[:16]}... and an engine of "
            f"{record.model_sha256[:16]}...; build it again: {record.command()}"
        )
    _check_data(folder / MANIFEST, text, record.manifest_sha256, record)
    _check_tensors(folder, record, manifest)
    for file in record.engines:
        _check_engine(folder / file.name, file, record)
    wanted = record.golden_sha256 is not None or os.path.lexists(folder / GOLDEN)
    golden = _read(folder / GOLDEN) if wanted else None
    if golden is not None:
        _check_data(folder / GOLDEN, golden, record.golden_sha256, record)
    return EngineFolder(folder, record, manifest, golden)


def write_folder(
    path: str | os.PathLike[str],
    make: Callable[[Path], EngineRecord],
    manifest: Manifest,
    golden: bytes | None,
) -> EngineFolder:
    """Write a folder as a whole or not at all, over an older engine folder of that name.

    ``make`` is given the unfinished folder to put the engines in, and returns the record of them.

    Raises:
        OutputError: ``path`` is something else, or cannot be written.
        ModelFileError, IntegrityError: what was written is not what the record says.
    """
    target = Path(os.path.abspath(path))
    check_replaceable(target)
    made = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        made.mkdir(parents=True)
        record = make(made)
        text = manifest.encode().encode() + b"\n"
        (made / MANIFEST).write_bytes(text)
        if golden is not None:
            (made / GOLDEN).write_bytes(golden)
        sample = None if golden is None else _digest(golden)
        record = msgspec.structs.replace(record, manifest_sha256=_digest(text), golden_sha256=sample)
        (made / RECORD).write_bytes(encode_record(record))
        found = open_folder(made)
        check_replaceable(target)  # building takes minutes, in which something may have been put there
        put_in_place(made, target)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return EngineFolder(target, found.record, found.manifest, found.golden)


def check_replaceable(path: Path) -> None:
    """Refuse to write over anything but an engine folder or an empty one, for all that is in it goes.

    Raises:
        OutputError: something else is there, or cannot be looked at.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is no folder; name one that does not exist yet")
    try:
        found = sorted(path.iterdir()) if path.exists() else []
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}") from error
    foreign = [entry.name for entry in found if not is_engine_file(entry)]
    if foreign or (found and not is_engine_folder(path)):
        name = (foreign or [found[0].name])[0]
        raise OutputError(
            f"{path} is a folder of something else, with {name}; name one that does not exist yet"
        )


def is_engine_file(entry: Path) -> bool:
    """Whether it may be a file of an engine folder. One whose engine.json is damaged may be replaced, one of
    that name that another program wrote may not."""
    if entry.is_symlink() or not entry.is_file():
        return False
    if entry.name == RECORD:
        data = entry.read_bytes()
        return b'"model_sha256"' in data or not _is_json(data)
    return entry.name in (MANIFEST, GOLDEN) or entry.suffix == ENGINE_SUFFIX


def _is_json(data: bytes) -> bool:
    with suppress(msgspec.DecodeError):
        msgspec.json.decode(data)
        return True
    return False


def put_in_place(made: Path, target: Path) -> None:
    """Rename over what is there; a reader sees the old folder, none for a moment, or the new one."""
    old = made.with_name(made.name + ".old")
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(made, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def encode_record(record: EngineRecord) -> bytes:
    """The record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_record(data: bytes, path: str | os.PathLike[str] = RECORD) -> EngineRecord:
    """Decode and check a record.

    Raises:
        ModelFileError: not JSON, a wrong or unknown field, an unsupported format, or one part names what
            another does not have.
    """
    try:
        record = msgspec.json.decode(data, type=EngineRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}; build the engine again") from error
    if record.format != FORMAT:
        raise ModelFileError(
            f"{path} has format {record.format}, this version reads {FORMAT}; upgrade streamssm"
        )
    fault = _fault(record)
    if fault:
        raise ModelFileError(f"{path} {fault}; build the engine again")
    return record


def _fault(record: EngineRecord) -> str:
    """What contradicts itself, or nothing."""
    names = [file.name for file in record.engines]
    reserved = {RECORD, MANIFEST, GOLDEN}
    if not names or len(set(names)) != len(names) or any(not name.endswith(ENGINE_SUFFIX) for name in names):
        return f"names the engines {_listed(names)}; there is one or more, each *{ENGINE_SUFFIX}"
    if reserved & set(names) or any(name.startswith(".") for name in names):
        return f"names the engines {_listed(names)}, which are names of other files"
    used = {profile.engine for profile in record.profiles}
    if used != set(names):
        return f"has profiles of {_listed(sorted(used))} and the engines {_listed(names)}"
    for profile in record.profiles:
        least, usual, most = profile.batch
        if not least <= usual <= most:
            return f"gives a profile {least} to {most} sequences, usually {usual}"
    if record.plugins != bool(record.plugin_version):
        return f"has plugins {record.plugins} of version {record.plugin_version!r}"
    return ""


def _check_tensors(folder: Path, record: EngineRecord, manifest: Manifest) -> None:
    wanted = (
        manifest.input.name,
        tuple(output.name for output in manifest.outputs),
        bound_states(manifest),
    )
    if (record.input, record.outputs, record.states) != wanted:
        raise ModelFileError(
            f"{folder / RECORD} and {folder / MANIFEST} do not name the same tensors; "
            f"build the engine again: {record.command()}"
        )


def _check_engine(path: Path, file: EngineFile, record: EngineRecord) -> None:
    if path.is_symlink() or not path.is_file():
        raise ModelFileError(f"{path} is missing or no plain file; copy the whole folder again")
    try:
        size, digest = path.stat().st_size, file_digest(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if (size, digest) != (file.size, file.sha256):
        raise IntegrityError(
            f"{path} has {size} bytes and sha256 {digest[:16]}..., {RECORD} records {file.size} and "
            f"{file.sha256[:16]}...: copy it again, or build it again: {record.command()}"
        )


def _check_data(path: Path, data: bytes, digest: str | None, record: EngineRecord) -> None:
    if digest is not None and _digest(data) != digest:
        raise IntegrityError(
            f"{path} has sha256 {_digest(data)[:16]}..., {RECORD} records {digest[:16]}...: copy it again, "
            f"or build it again: {record.command()}"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def engine_file(path: Path, seconds: float, kernels: int | None = None) -> EngineFile:
    """What the record says of an engine that has been written."""
    return EngineFile(path.name, path.stat().st_size, file_digest(path), round(seconds, 3), kernels)


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ModelFileError(
            f"{path} is missing or no plain file; an engine folder is what "
            "'streamssm export MODEL --format tensorrt --target TARGET' writes"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) and values else "none"
