"""The command group and the one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich_click import RichGroup

from streamssm.errors import StreamSSMError

DEBUG = "STREAMSSM_DEBUG"
EXIT_INTERRUPTED = 130


class Cli(RichGroup):
    """A group whose every failure is one line, ``error: ...``, and a documented exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run a command and exit the process."""
        options["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **options)
        except SystemExit as exit_:
            raise exit_
        except BaseException as error:
            code = _report(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a reader that leaves early, such as ``head``, is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return forget_stdout()


def _report(error: BaseException) -> int:
    """Print the line for an error; return its exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _line("interrupted", EXIT_INTERRUPTED, error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help())
        return error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "streamssm"
        return _line(f"{error.format_message()} See '{path} --help'.", error.exit_code, error)
    if isinstance(error, click.ClickException):
        return _line(error.format_message(), error.exit_code, error)
    if isinstance(error, StreamSSMError):
        return _line(str(error), error.exit_code, error)
    if isinstance(error, MemoryError):
        return _line(f"not enough memory: {error}; give a smaller --block, --chunk or --items", 1, error)
    if isinstance(error, OSError) and error.strerror:
        return _line(f"the system refused: {error.strerror} {error.filename or ''}".rstrip(), 1, error)
    kind = type(error).__name__
    return _line(f"unexpected {kind}: {error}; set {DEBUG}=1 for the traceback", 1, error)


def _line(message: str, code: int, error: BaseException) -> int:
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
    click.echo("error: " + " ".join(message.split()), err=True)
    return code


def forget_stdout() -> int:
    """Stop writing to a reader that has gone; return the exit code for it."""
    # what is left in the buffer would fail again, with a message, when the interpreter exits
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamssm")
def cli() -> None:
    """Run streaming models: any split of the input gives the same output as the whole.

    Data go to standard output, everything else to standard error. Exit codes: 0 done, 1 it could
    not be done, 2 wrong usage, 3 bad model file, 4 a check failed, 130 interrupted.
    """
