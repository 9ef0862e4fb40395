"""``streamssm quantize``: smaller weights for an existing file; and the same as options of ``export``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from rich.table import Table

_FILE = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])

BLOCK_SIZES = ("16", "32", "64", "128", "256")
_OPTIONS = (
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Linear layers whose weight has such a name, as 'head.*', stay float32. May be repeated.",
    ),
    click.option(
        "--weights-block",
        "block_size",
        type=click.Choice(BLOCK_SIZES),
        help="Inputs that share a scale; smaller is more exact, larger is faster. Default: 128.",
    ),
    click.option("--report", type=_FILE, help="Also write the error report here, as JSON."),
    click.option("--total-only", is_flag=True, help="Leave out the effect of each layer by itself; quicker."),
)


def quantise_options(command: _Command) -> _Command:
    """The options that ``quantize`` and ``export`` share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=_FILE, required=True, help="The .onnx file to write.")
@click.option("--weights", type=click.Choice(["int8", "int4"]), required=True, help="What to round to.")
@quantise_options
@click.option("--data", type=_FILE, help="What to measure on: .npy of x, or .npz with x and labels.")
@click.option("--labels", type=_FILE, help="An .npy file of labels, where --data holds none.")
@click.option(
    "--metric", type=click.Choice(["auc", "accuracy"]), help="Default: what suits the first output."
)
def quantize(model: str, output: Path, data: Path | None, labels: Path | None, **options: Any) -> None:
    """Round the weights of MODEL's large linear layers to 8 or 4 bits and write a new file.

    MODEL is a float32 .onnx file or a built-in name. Everything else stays float32: the front end,
    recurrences, convolutions, norms, embedding tables, and matrices below 32 x 8. So does what a scan
    reads (x_proj), where the file would be refused with it.

    What it costs is printed, layer by layer and in total: the error of the weights, and how far the
    outputs move on DATA, x [T, ...] or [B, T, ...] (default: the sample in the file). With labels, one
    for each output item (-1: not scored), the metric is printed too. Needs the extra: pip install
    'streamssm[export]'.
    """
    from streamssm.cli.output import check_distinct, check_writable
    from streamssm.errors import UsageError
    from streamssm.model import find

    report: Path | None = options["report"]
    written = [path for path in (output, report) if path is not None]
    check_distinct([path for path in (find(model), data, labels) if path is not None], written)
    for path in written:
        check_writable(path)
    if data is None and (labels is not None or options["metric"] is not None):
        raise UsageError("--labels and --metric need --data, what the model is to be scored on")
    quantise_file(model, output, data=_read(data, labels), **options)


def quantise_file(
    source: str | Path,
    output: Path,
    *,
    report: Path | None,
    total_only: bool,
    block_size: str | None,
    **options: Any,
) -> None:
    """Quantise and say what it cost: the new file's path on standard output, tables on standard error.

    Raises:
        ExportError: onnx is missing, or the file cannot be quantised.
    """
    import json
    from importlib import import_module

    from streamssm.atomic import write_bytes
    from streamssm.errors import ExportError

    try:
        quantizer = import_module("streamssm.export.quantizer")
    except ImportError as error:
        raise ExportError(f"quantising needs {error.name}; pip install 'streamssm[export]'") from error
    size = quantizer.BLOCK_SIZE if block_size is None else int(block_size)
    with _progress() as progress:
        found = quantizer.quantize(
            source, output, block_size=size, per_layer=not total_only, progress=progress, **options
        ).to_dict()
    if report is not None:
        write_bytes(report, json.dumps(found, indent=2).encode() + b"\n")
    click.echo(f"{output}")
    _print(found)


def _read(data: Path | None, labels: Path | None) -> Any:
    """The data as the quantiser takes them.

    Raises:
        UsageError: a file cannot be read, or there are two sets of labels.
    """
    if data is None or labels is None:
        return data
    from importlib import import_module

    from streamssm.errors import UsageError

    read_arrays = import_module("streamssm.export.quantize_data").read_arrays
    found = read_arrays(data), read_arrays(labels)
    if any(isinstance(part, tuple) for part in found):
        raise UsageError(f"--labels is for .npy files; {data} and {labels} hold labels of their own")
    return found


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    with Status("opening", console=console) as status:
        yield lambda what, done, total: status.update(f"{what} {done}/{total}")


def _print(report: dict[str, Any]) -> None:
    from streamssm.cli.show import binary_size, show, table

    metric = report["metric"]
    show(_costs(report), error=True)
    if report["kept"]:
        show("", table(["stays float32", "because"], list(report["kept"].items())), error=True)
    before, after = (binary_size(size) for size in report["bytes"])
    lines = [
        f"{report['weights']} in blocks of {report['block_size']}: {before} -> {after}",
        f"output errors, against the float32 file on {report['items']} items: root mean square and largest",
    ]
    if metric:
        value = report["total"]["metric"]
        lines.append(f"{metric}: {report['baseline']:.4f} float32, {value:.4f} {report['weights']}")
    show("", *lines, error=True)


def _costs(report: dict[str, Any]) -> Table:
    """A row for each layer, and one for all together."""
    from streamssm.cli.show import table

    metric, baseline = report["metric"], report["baseline"]
    head = ["layer", "inputs", "outputs", "weight error", "output error", "largest"]

    def row(name: str, K: str, N: str, weight_error: float, effect: dict[str, float] | None) -> list[str]:
        cells = [name, K, N, f"{weight_error:.2g}"]
        if effect is None:
            return [*cells, "", "", ""][: len(head) + bool(metric)]
        cells += [f"{effect['rms']:.2g}", f"{effect['max_rel']:.2g}"]
        return [*cells, f"{effect['metric'] - baseline:+.4f}"] if metric else cells

    rows = [
        row(layer["name"], str(layer["K"]), str(layer["N"]), layer["weight_error"], layer["effect"])
        for layer in report["layers"]
    ]
    rows.append(row("all of them", "", "", report["weight_error"], report["total"]))
    return table([*head, metric] if metric else head, rows)
