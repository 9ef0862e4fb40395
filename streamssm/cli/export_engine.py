"""``streamssm export --format tensorrt``: engines of a model for a GPU, or a bundle to build them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from streamssm.onnx_file import ModelFile
    from streamssm.tensorrt.folder import EngineFolder, Precision
    from streamssm.tensorrt.profiles import Calls
    from streamssm.tensorrt.targets import Target

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--target",
        metavar="NAME",
        help="Of engines: orin-nano, orin-nx, orin-agx, thor, rtx-30, rtx-40, rtx-50, sm_XX, or local, the "
        "GPU of this machine.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        help="Of products with weights; everything else, and all states, are float32. [default: fp32]",
    ),
    click.option(
        "--batch", type=click.IntRange(min=1), help="Of engines: most sequences at once. [default: 1]"
    ),
    click.option(
        "--plugins",
        type=click.Choice(["on", "off"]),
        help="Run our operators as plugins, or in native ones. [default: on where there are plugins]",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file in which TensorRT keeps how fast kernels are. [default: in the user's cache folder]",
    ),
)
_KEYS = ("target", "precision", "batch", "plugins", "timing_cache")


@dataclass(frozen=True)
class _Asked:
    """What was said of how to build, where None leaves it to the target."""

    precision: Precision | None
    plugins: str | None
    timing_cache: Path | None


def engine_options(command: _Command) -> _Command:
    """The options of ``export`` that only engines have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of engines, and those of models."""
    engine = {key: given[key] for key in _KEYS}
    return engine, {key: value for key, value in given.items() if key not in engine}


def check_engine_options(format_: str, engine: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse options of the other format.

    Raises:
        UsageError: one was given.
    """
    from streamssm.errors import UsageError

    wrong = model if format_ == "tensorrt" else engine
    said = [key for key, value in wrong.items() if value is not None and value is not False and value != ()]
    if said:
        option = "--" + said[0].strip("_").replace("_", "-")
        other = (
            "a config or a checkpoint, not for engines" if wrong is model else "engines: --format tensorrt"
        )
        raise UsageError(f"{option} is for {other}")


def export_engines(
    source: Path, output: Path | None, block: str | None, target: str | None, batch: int | None, **given: Any
) -> None:
    """Write an engine folder, or a bundle for a target that has to build its own; its path goes to standard
    output.

    Raises:
        UsageError: no target, or one there is not; a block or a batch that does not fit the model.
        ModelFileError, ExportError, BackendError, GateError, OutputError: it cannot be built.
    """
    from streamssm.errors import UsageError
    from streamssm.model import find
    from streamssm.onnx_file import read_model_file
    from streamssm.tensorrt.profiles import calls_for
    from streamssm.tensorrt.targets import find_target, names

    if target is None:
        raise UsageError(f"--format tensorrt needs --target: one of {', '.join(names())}")
    aimed = find_target(target)
    _check_source(source)
    file = read_model_file(find(str(source)))
    calls = calls_for(file.manifest, block, batch or 1)
    folder = output or Path(f"{file.path.stem}.{target}")
    write = _write_bundle if aimed.on_device else _build
    write(file, aimed, folder, calls, _Asked(**given))
    click.echo(f"{folder}")


def _check_source(source: Path) -> None:
    from streamssm.errors import UsageError

    if source.is_dir() or source.suffix.lower() in (".toml", ".json"):
        raise UsageError(
            f"engines are built of a model file; first run: streamssm export {source} -o {source.stem}.onnx"
        )


def _build(file: ModelFile, target: Target, folder: Path, calls: Calls, asked: _Asked) -> None:
    """Build here, with a bar on a terminal."""
    from streamssm.tensorrt.builder import Options, default_cache, export_engine, library

    cache = asked.timing_cache
    if cache is None and target.kind == "tensorrt":
        cache = default_cache(target, library(target.kind).__version__)
    options = Options(calls, asked.precision or "fp32", _plugins(target, asked.plugins), cache)
    with _bar() as progress:
        built = export_engine(file, target, folder, options, progress)
    _print(built)


def _plugins(target: Target, wanted: str | None) -> bool:
    """Whether to build with plugins: unless told, where TensorRT takes them and they are installed."""
    from streamssm.errors import BackendError
    from streamssm.tensorrt.plugins import find_plugins

    if wanted is not None or target.kind == "tensorrt_rtx":
        return wanted == "on"
    try:
        find_plugins()
    except BackendError:
        return False
    return True


def _write_bundle(file: ModelFile, target: Target, folder: Path, calls: Calls, asked: _Asked) -> None:
    """Write what the device needs to build its own engine."""
    from streamssm.errors import UsageError
    from streamssm.tensorrt.bundle import write_bundle

    if asked.timing_cache is not None:
        raise UsageError(f"{target.name} keeps its own timing cache; leave out --timing-cache")
    write_bundle(
        file, target, folder, calls, precision=asked.precision or "fp32", plugins=asked.plugins != "off"
    )


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _print(built: EngineFolder) -> None:
    """What was built, on standard error."""
    from streamssm.cli.show import binary_size, show, table

    record = built.record
    sizes = {file.name: file for file in record.engines}
    rows = [
        (
            profile.engine,
            str(profile.block),
            f"1 to {profile.batch[2]}" if profile.batch[2] > 1 else "1",
            binary_size(sizes[profile.engine].size),
            str(sizes[profile.engine].kernels or ""),
            f"{sizes[profile.engine].seconds:.1f} s",
        )
        for profile in record.profiles
    ]
    show(table(["engine", "block", "sequences", "size", "kernels", "built in"], rows), error=True)
    version = f"{record.kind} {record.version}, sm_{record.sm}, {record.precision} products"
    click.echo(f"{record.name} for {record.target}: {version}, of model {record.model_sha256}", err=True)
