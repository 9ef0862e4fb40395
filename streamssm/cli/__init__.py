"""The command line. Commands import what is heavy when they run, so that help is instant."""

from __future__ import annotations

from streamssm.cli.app import cli
from streamssm.cli.bench import bench
from streamssm.cli.check import check
from streamssm.cli.devices import devices
from streamssm.cli.export import export
from streamssm.cli.info import info
from streamssm.cli.plan import plan
from streamssm.cli.quantize import quantize
from streamssm.cli.run import run
from streamssm.cli.serve import serve

__all__ = ["cli", "main"]

for _command in (run, info, check, bench, export, quantize, serve, devices, plan):
    cli.add_command(_command)


def main() -> None:
    """The ``streamssm`` program."""
    cli(prog_name="streamssm")
