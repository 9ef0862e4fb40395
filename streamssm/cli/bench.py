"""``streamssm bench``: what a push costs, and how much of it is the backend's run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from streamssm.cli.amount import PositiveNumber
from streamssm.cli.precision import precision_option

if TYPE_CHECKING:
    from streamssm.model import Model


def _counts(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """An option callback: ``1,16,64``."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers of streams; write 1,16,64,256.")
    return [int(part) for part in parts]


@click.command()
@click.argument("model")
@click.option("--items", type=click.IntRange(min=1), help="Input items to push; default: 2000 blocks.")
@click.option("--seconds", type=PositiveNumber(), help="The same as a time of input.")
@click.option(
    "--block",
    type=click.IntRange(min=1),
    help="Items per backend call; default: the model's, of a pool four times that.",
)
@click.option(
    "--streams",
    metavar="N,N...",
    callback=_counts,
    help="Measure pools of so many streams, beside the same streams one by one.",
)
@click.option("--backend", default="auto", show_default=True, help="Where the model runs.")
@precision_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random input.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    model: str,
    items: int | None,
    seconds: float | None,
    block: int | None,
    streams: list[int] | None,
    backend: str,
    precision: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure MODEL: one block a push, each push beside a bare run of the backend.

    Push and run take turns, so that both meet the same machine; the overhead is the median of the
    differences. Input is random; one stream, one thread. With --streams: what a pool of streams
    costs, and how many it would serve in real time on one core.
    """
    import json

    import streamssm
    from streamssm import clock
    from streamssm.bench import measure, resident_bytes
    from streamssm.cli.amount import length

    before = resident_bytes()
    opened = streamssm.load(model, backend=backend, precision=precision)
    count = length(items, seconds, clock.input_rate(opened.manifest))
    if streams is not None:
        _bench_streams(opened, streams, count, block, seed, as_json)
        return
    figures = measure(opened, count, block, seed)
    after = resident_bytes()
    figures["memory_bytes"] = {"process": after, "model": after - before} if before and after else None
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print(figures)


def _bench_streams(
    model: Model, streams: list[int], items: int | None, block: int | None, seed: int, as_json: bool
) -> None:
    import json

    from streamssm.bench import measure_streams

    found = [measure_streams(model, count, items, block, seed) for count in streams]
    if as_json:
        click.echo(json.dumps({"model": model.manifest.name, "pools": found}, indent=2))
    else:
        _print_streams(model, found)


def _print_streams(model: Model, found: list[dict[str, Any]]) -> None:
    from streamssm.cli.show import show, table

    head = [
        "streams",
        "one by one",
        "pool",
        "ratio",
        "by rows",
        "ratio",
        "streams a core",
        "p99 ms",
        "missed",
    ]
    rows = [
        (
            str(each["streams"]),
            *(f"{value:.1f}" for value in (each["us"]["one_by_one"], each["us"]["pool"])),
            f"{each['ratio']:.2f}",
            f"{each['us']['rows']:.1f}",
            f"{each['ratio_rows']:.2f}",
            "-" if each["streams_per_core"] is None else str(each["streams_per_core"]),
            f"{each['p99_ms']:.2f}",
            "-" if each["missed"] is None else f"{each['missed']:.2%}",
        )
        for each in found
    ]
    hop, block = found[0]["hop"], found[0]["block"]
    show(
        table(head, rows),
        f"{model.manifest.name}: CPU microseconds for {hop} items of one stream; the pool gathers {block}",
        "p99: from the last items of a block to the results of all streams; missed: blocks that took "
        "longer than they last",
    )


def _print(figures: dict[str, Any]) -> None:
    from streamssm.cli.show import binary_size, show, table

    rows = [
        (name, *(f"{value:.1f}" for value in figures[key].values()))
        for name, key in (("push", "push_us"), ("bare run", "run_us"))
    ]
    factor, memory = figures["real_time_factor"], figures["memory_bytes"]
    lines = [
        f"overhead of a push {figures['overhead_us']:.1f} us",
        f"{figures['items_per_second']:.0f} items a second, block {figures['block']}, {figures['backend']}",
        f"state {binary_size(figures['state_bytes'])} a stream",
    ]
    if factor is not None:
        lines.insert(2, f"real-time factor {factor:.5f}")
    if memory is not None:
        used, added = (binary_size(memory[key]) for key in ("process", "model"))
        lines.append(f"memory {used}, {added} of it for the model")
    show(table(["us", *figures["push_us"]], rows), *lines)
