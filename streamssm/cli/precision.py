"""The option that says what the matrices of a model are rounded to on a GPU."""

from __future__ import annotations

import rich_click as click

precision_option = click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the matrices of Mamba and Mamba-2 blocks; with --backend cuda.",
)
