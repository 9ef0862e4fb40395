"""``streamssm check``: the promise made visible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from streamssm.cli.amount import PositiveNumber
from streamssm.cli.precision import precision_option

if TYPE_CHECKING:
    from streamssm.checks import Check, Progress
    from streamssm.model import Model


@click.command()
@click.argument("model")
@click.option("--items", type=click.IntRange(min=1), help="Length of the random input.")
@click.option("--seconds", type=PositiveNumber(), help="The same as a time.")
@click.option("--splits", type=click.IntRange(min=1), default=50, show_default=True, help="Random splits.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The same seed draws the same cases.",
)
@click.option("--block", type=click.IntRange(min=1), help="Block size under test; default: the model's.")
@click.option("--backend", default="auto", show_default=True, help="Where the model runs.")
@precision_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check(
    model: str,
    items: int | None,
    seconds: float | None,
    splits: int,
    seed: int,
    block: int | None,
    backend: str,
    precision: str,
    as_json: bool,
) -> None:
    """Check that MODEL keeps the promise: any split gives the same output as the whole.

    Draws random splits, resets, snapshot points, forks and batches, compares each with the whole
    sequence and with the golden vectors in the file. Exit code 0: PASS, 4: FAIL, 3: the file is
    damaged or contradicts itself.
    """
    import streamssm
    from streamssm import clock
    from streamssm.checks import run_checks
    from streamssm.cli.amount import length
    from streamssm.errors import GateError

    opened = streamssm.load(model, backend=backend, precision=precision)
    count = length(items, seconds, clock.input_rate(opened.manifest))
    with _progress() as progress:
        found = list(
            run_checks(opened, items=count, splits=splits, seed=seed, block=block, progress=progress)
        )
    failed = [result.name for result in found if result.verdict == "fail"]
    (_print_json if as_json else _print_table)(opened, found, seed)
    if failed:
        raise GateError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, done, total: None
        return
    with Status("checking", console=console) as status:
        yield lambda name, done, total: status.update(f"{name} {done}/{total}")


def _print_table(model: Model, found: list[Check], seed: int) -> None:
    from streamssm.cli.show import show, table

    rows = [(result.name, result.verdict, str(result.cases or ""), result.detail) for result in found]
    show(table(["check", "verdict", "cases", ""], rows))
    show(f"{_verdict(found)}: {model.manifest.name}, seed {seed}")


def _print_json(model: Model, found: list[Check], seed: int) -> None:
    import dataclasses
    import json

    report = {
        "model": model.manifest.name,
        "sha256": model.sha256,
        "seed": seed,
        "verdict": _verdict(found),
        "checks": [dataclasses.asdict(result) for result in found],
    }
    click.echo(json.dumps(report, indent=2))


def _verdict(found: list[Check]) -> str:
    return "FAIL" if any(result.verdict == "fail" for result in found) else "PASS"
