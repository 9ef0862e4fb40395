"""``streamssm bench``: what a push costs, and how much of it is the backend's run."""

from __future__ import annotations

from typing import Any

import rich_click as click

from streamssm.cli.amount import PositiveNumber


@click.command()
@click.argument("model")
@click.option("--items", type=click.IntRange(min=1), help="Input items to push; default: 2000 blocks.")
@click.option("--seconds", type=PositiveNumber(), help="The same as a time of input.")
@click.option("--block", type=click.IntRange(min=1), help="Items per backend call; default: the model's.")
@click.option("--backend", default="auto", show_default=True, help="Where the model runs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random input.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    model: str,
    items: int | None,
    seconds: float | None,
    block: int | None,
    backend: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure MODEL: one block a push, each push beside a bare run of the backend.

    Push and run take turns, so that both meet the same machine; the overhead is the median of the
    differences. Input is random; one stream, one thread.
    """
    import json

    import streamssm
    from streamssm import clock
    from streamssm.bench import measure, resident_bytes
    from streamssm.cli.amount import length

    before = resident_bytes()
    opened = streamssm.load(model, backend=backend)
    count = length(items, seconds, clock.input_rate(opened.manifest))
    figures = measure(opened, count, block, seed)
    after = resident_bytes()
    figures["memory_bytes"] = {"process": after, "model": after - before} if before and after else None
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print(figures)


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
