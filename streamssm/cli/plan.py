"""``streamssm plan``: what a device will do with a model, before it is bought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from streamssm.cli.amount import Amount, parse_amount

if TYPE_CHECKING:
    from streamssm.manifest import Manifest
    from streamssm.tensorrt.plan import Plan


@click.command()
@click.argument("model")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="A target or a device, such as orin-nano, thor, rtx-4090, h100, or local-cpu; may be given more "
    "than once. Default: every Jetson.",
)
@click.option("--streams", type=click.IntRange(min=1), default=1, show_default=True, help="Streams at once.")
@click.option(
    "--hop", callback=parse_amount, help="Input of one step, 160 or 10ms; default: the model's block."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the products' weights.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def plan(
    model: str, targets: tuple[str, ...], streams: int, hop: Amount | None, precision: str, as_json: bool
) -> None:
    """Predict how MODEL will run: step time, streams per device, memory, and what bounds it.

    From the operations and bytes in the model's graph, the published figures of the device, and the
    fractions of them that were measured on an H100 and on a processor's core. Nothing is run.
    """
    from streamssm.errors import UsageError
    from streamssm.model import find
    from streamssm.onnx_file import read_model_file
    from streamssm.tensorrt.plan import make_plan
    from streamssm.tensorrt.targets import TARGETS

    path = find(model)
    if path.is_dir():
        raise UsageError(
            f"{model} is a folder, and a plan is counted in a model's graph; name the .onnx file"
        )
    file = read_model_file(path)
    items = None if hop is None else _items(hop, file.manifest)
    wanted = targets or tuple(name for name, target in TARGETS.items() if target.jetson)
    plans = [make_plan(file, target, streams, items, precision) for target in wanted]
    if as_json:
        _print_json(plans)
    else:
        _print_tables(plans)


def _items(hop: Amount, manifest: Manifest) -> int:
    from streamssm import clock
    from streamssm.cli.amount import to_items

    return to_items(hop, clock.input_rate(manifest), "--hop")


def _print_json(plans: list[Plan]) -> None:
    import dataclasses
    import json

    report = [{**dataclasses.asdict(plan), "load": plan.load, "bytes": plan.bytes} for plan in plans]
    click.echo(json.dumps(report if len(report) != 1 else report[0], indent=2))


def _print_tables(plans: list[Plan]) -> None:
    from streamssm.cli.show import show, table

    first = plans[0]
    clock = "" if first.period is None else f", {1e3 * first.period:g} ms"
    show(
        f"{first.model}: {first.streams} streams, steps of {first.items} items{clock}, {first.precision}", ""
    )
    head = ["", *(plan.target for plan in plans)]
    rows = [[name, *cells] for name, *cells in zip(_NAMES, *map(_cells, plans), strict=True)]
    show(table(head, rows))
    for line in _remarks(plans):
        show(line)


_NAMES = (
    "device",
    "step",
    "bound by",
    "of the time",
    "streams per device",
    "ended by",
    "memory",
    "operations",
    "bytes read and written",
)


def _cells(plan: Plan) -> tuple[str, ...]:
    from streamssm.cli.show import binary_size

    has = "" if plan.memory is None else f" of {binary_size(plan.memory)}"
    return (
        plan.title,
        _time(plan.seconds),
        ", ".join(f"{name} {share:.0%}" for name, share in _shares(plan)),
        "" if plan.load is None else f"{plan.load:.1%}",
        f"{plan.most:,}",
        plan.limit,
        f"{binary_size(plan.bytes)}{has}",
        f"{plan.operations / 1e9:.3g} G",
        binary_size(int(plan.traffic)),
    )


def _shares(plan: Plan) -> list[tuple[str, float]]:
    """The two largest terms."""
    largest = sorted(plan.terms.items(), key=lambda term: -term[1])[:2]
    return [(name, seconds / plan.seconds) for name, seconds in largest]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _remarks(plans: list[Plan]) -> list[str]:
    from streamssm.tensorrt.plan import LOAD

    lines: dict[str, Any] = {}
    for plan in plans:
        lines |= dict.fromkeys(f"note: {note}" for note in plan.notes)
        counted = ", ".join(f"{name} {count}" for name, count in plan.unknown.items())
        if counted:
            lines[f"note: not counted, so that every step takes longer: {counted}"] = None
        lines |= dict.fromkeys(f"{plan.target}: {source}" for source in plan.sources)
    return ["", f"note: a step may take {LOAD:.0%} of its time; beyond that, streams are not served", *lines]
