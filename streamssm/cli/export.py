"""``streamssm export``: a model from a config and weights, or from a checkpoint folder, to a file; or from a
file to engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from streamssm.cli.export_engine import check_engine_options, engine_options, export_engines, split_options
from streamssm.cli.quantize import quantise_options

if TYPE_CHECKING:
    from streamssm.manifest import Manifest

_FILE = click.Path(path_type=Path)
_TYPES = ("float32", "int8", "int4")


@click.command()
@click.argument("config", type=_FILE, metavar="CONFIG|FOLDER|MODEL")
@click.option(
    "-o",
    "--output",
    type=_FILE,
    help="The .onnx file to write; of engines, the folder. [default of engines: NAME.TARGET]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="What to write: a model, or engines of a model for a GPU.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE|TYPE",
    help="A state dict: .pt, .pth or .safetensors (default: random weights); or how the file is to store "
    "them: float32, int8 or int4. May be given once for each.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of random weights. [default: 0]")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Of a checkpoint: items that attention sees, where its own model lets it see everything.",
)
@click.option(
    "--alphabet",
    type=click.Choice(["bytes", "nucleotides"]),
    help="What tokens stand for. Default: a checkpoint's tokenizer.json, if it has one.",
)
@click.option("--name", help="The model's name. Default: the config's, else the file's.")
@click.option(
    "--block",
    metavar="N[,N...]",
    help="Default items per backend call; of engines, every number of items they are built for.",
)
@click.option("--description", help="One line about the model.")
@click.option("--license", "license_", help="Licence of the weights, as an SPDX name.")
@quantise_options
@engine_options
def export(config: Path, output: Path | None, format_: str, block: str | None, **given: Any) -> None:
    """Build the model that CONFIG (JSON or TOML) describes, or open the checkpoint in FOLDER
    (config.json with safetensors or pytorch_model.bin, of transformers or state-spaces), and write it
    as one .onnx file.

    The file is compared with the float64 model before it is put in place; the errors measured
    are printed and kept in the file. With --weights int8 or int4 it is then quantised, as
    'streamssm quantize' does. Needs the extra: pip install 'streamssm[export]'.

    With --format tensorrt, build engines of MODEL (.onnx, or a built-in name) for a GPU. GeForce cards from
    the RTX 20 series on need not be here: pip install 'streamssm[rtx]'. For a Jetson a bundle is written,
    with all that builds the engine there.
    """
    engine, model = split_options(given)
    check_engine_options(format_, engine, model)
    if format_ == "tensorrt":
        export_engines(config, output, block, **engine)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    _export_model(config, output, block=_whole(block), **model)


def _export_model(
    config: Path, output: Path, weights: tuple[str, ...], report: Path | None, **given: Any
) -> None:
    """Write a model file."""
    from streamssm.cli.output import check_distinct, check_writable

    state_dict, stored = _split_weights(weights)
    quantising = {key: given.pop(key) for key in ("exclude", "block_size", "total_only")}
    _check_quantising(stored, report, quantising)
    write = _writer(config, state_dict, **given)
    written = [path for path in (output, report) if path is not None]
    check_distinct([path for path in (config, state_dict) if path is not None], written)
    for path in written:
        check_writable(path)
    if stored == "float32":
        _print(output, write(output))
        return
    from tempfile import TemporaryDirectory

    from streamssm.cli.quantize import quantise_file

    with TemporaryDirectory() as folder:
        whole = Path(folder) / output.name  # of the same name, which may become the model's
        write(whole)
        quantise_file(whole, output, weights=stored, report=report, **quantising)


def _whole(block: str | None) -> int | None:
    """The one block of a model.

    Raises:
        UsageError: it is no positive number.
    """
    if block is None:
        return None
    if not block.isdecimal() or int(block) < 1:
        raise click.UsageError(f"Invalid value for '--block': {block!r} is no positive number of items.")
    return int(block)


def _writer(
    config: Path,
    state_dict: Path | None,
    seed: int | None,
    window: int | None,
    license_: str | None,
    **given: Any,
) -> Callable[[Path], Manifest]:
    """What writes the float32 file to a path, of a checkpoint folder or of a config.

    Raises:
        UsageError: an option of the one was given for the other.
        ExportError: the config cannot be read.
    """
    from streamssm.errors import UsageError

    said = {key: value for key, value in {**given, "license": license_}.items() if value is not None}
    if config.is_dir():
        if state_dict is not None or seed is not None:
            raise UsageError(
                f"{config} is a folder with its own weights; leave out --weights FILE and --seed"
            )
        from streamssm.cli.checkpoint import export_checkpoint

        return lambda path: export_checkpoint(config, path, window, **said)
    if window is not None:
        raise UsageError(f"--window is for checkpoint folders; write the window of attention into {config}")
    parsed = _read_config(config)
    return lambda path: _export(parsed, state_dict, path, seed or 0, said)


def _split_weights(values: tuple[str, ...]) -> tuple[Path | None, str]:
    """The checkpoint and the type among the values of ``--weights``.

    Raises:
        UsageError: there are two of a kind.
    """
    from streamssm.errors import UsageError

    types = [value for value in values if value in _TYPES]
    files = [value for value in values if value not in _TYPES]
    if len(types) > 1 or len(files) > 1:
        raise UsageError(f"--weights is given as {', '.join(values)}; give one file and one type at most")
    return (Path(files[0]) if files else None), (types[0] if types else "float32")


def _check_quantising(stored: str, report: Path | None, options: dict[str, Any]) -> None:
    if stored == "float32" and (report is not None or any(options.values())):
        from streamssm.errors import UsageError

        raise UsageError("--exclude, --weights-block, --report and --total-only need --weights int8 or int4")


def _export(
    parsed: dict[str, Any], state_dict: Path | None, output: Path, seed: int, said: dict[str, Any]
) -> Manifest:
    """Build the model, fill it and write it in float32."""
    package = exporter()
    import torch

    torch.manual_seed(seed)
    model = package.build(parsed)
    if state_dict is not None:
        _load_weights(model, state_dict)
    manifest: Manifest = package.export(model, output, **(package.model_options(parsed) | said))
    return manifest


def exporter() -> Any:
    """The package ``streamssm.export``.

    Raises:
        ExportError: torch or onnx is missing.
    """
    from importlib import import_module

    from streamssm.errors import ExportError

    try:
        for needed in ("torch", "onnx", "onnxscript"):
            import_module(needed)
        return import_module("streamssm.export")
    except ImportError as error:
        raise ExportError(f"exporting needs {error.name}; pip install 'streamssm[export]'") from error


def _read_config(path: Path) -> dict[str, Any]:
    """A JSON or TOML file as a dictionary.

    Raises:
        ExportError: unreadable, of another kind, or not a table.
    """
    import json
    import tomllib

    from streamssm.errors import ExportError

    readers: dict[str, Any] = {".json": json.loads, ".toml": tomllib.loads}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ExportError(
            f"{path} is neither a config (.json, .toml) nor the folder of a checkpoint; of a model that is "
            "exported already, --format tensorrt makes an engine, 'streamssm quantize' a smaller file"
        )
    try:
        config = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSON, TOML and UTF-8 errors are all ValueErrors
        raise ExportError(f"{path} is not valid {path.suffix[1:].upper()}: {error}; correct it") from error
    if not isinstance(config, dict):
        raise ExportError(f"{path} holds a {type(config).__name__}; a config is a table of options")
    return config


def _load_weights(model: Any, path: Path) -> None:
    """Fill the model from a checkpoint, strictly.

    Raises:
        ExportError: the file is no state dict, or its names or shapes are not the model's.
    """
    from streamssm.errors import ExportError

    tensors = _read_weights(path)
    if not isinstance(tensors, dict):
        raise ExportError(
            f"{path} holds a {type(tensors).__name__}, not a state dict; save model.state_dict()"
        )
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ExportError(
            f"{path} does not fit the config: {len(missing)} weights are missing{_some(missing)}, "
            f"{len(unknown)} are unknown{_some(unknown)}"
        )
    for name, wanted in own.items():
        if tuple(tensors[name].shape) != tuple(wanted.shape):
            raise ExportError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, the config wants {list(wanted.shape)}"
            )
    model.load_state_dict(tensors)


def _read_weights(path: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from streamssm.errors import ExportError

    if not path.is_file():
        raise ExportError(f"{path} does not exist or is no file; check --weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a checkpoint is data, and must not run code
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ExportError(f"{path} is not a readable checkpoint: {error}") from error
    except Exception as error:  # pickle's own errors have no common base
        raise ExportError(
            f"{path} is not a plain state dict ({type(error).__name__}: {error}); write it with "
            "torch.save(model.state_dict(), FILE), or as .safetensors"
        ) from error


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _print(path: Path, manifest: Manifest) -> None:
    """Where it went on standard output; how exact it is on standard error."""
    from streamssm.cli.show import binary_size

    click.echo(f"{path}")
    for error in manifest.errors:
        line = (
            f"{error.name}: {error.max_abs:.2g} absolute, {error.max_rel:.2g} relative, {error.items} items"
        )
        click.echo(line, err=True)
    size = binary_size(path.stat().st_size + sum(side.size for side in manifest.external))
    click.echo(
        f"{manifest.name}: {size}, {manifest.parameters:,} parameters, sha256 {manifest.sha256}", err=True
    )
