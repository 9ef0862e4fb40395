"""``streamssm serve``: streams over websockets, and a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from streamssm.cli.amount import Amount, PositiveNumber, parse_amount
from streamssm.cli.precision import precision_option

if TYPE_CHECKING:
    from streamssm.model import Model
    from streamssm.serving.app import Server
    from streamssm.serving.settings import Settings

_FILE = click.Path(path_type=Path, dir_okay=False)
_SWITCH = 0.0005  # seconds that the event loop and the steps may keep each other waiting
_COUNT = click.IntRange(min=1)
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _parse_size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", value.strip().lower())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{value!r} is not a size; write bytes, or 512k, 4M.")
    return int(match[1]) * _SIZES[match[2]]


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one."
)
@click.option("--slots", type=_COUNT, default=64, show_default=True, help="Streams of a model at a time.")
@click.option(
    "--block", metavar="AMOUNT", callback=parse_amount, help="Run at once: 160, 40ms; default: the model's."
)
@click.option(
    "--gather", metavar="TIME", default="2ms", show_default=True, callback=parse_amount,
    help="How long a stream that is ready waits for others.",
)  # fmt: skip
@click.option("--backend", default="auto", show_default=True, help="Where the models run.")
@precision_option
@click.option("--token", envvar="STREAMSSM_TOKEN", show_envvar=True, help="What clients must know.")
@click.option("--token-file", type=_FILE, help="The same, from a file.")
@click.option("--cert", type=_FILE, help="Certificate chain, PEM: serve TLS.")
@click.option("--key", type=_FILE, help="Its private key, PEM.")
@click.option("--insecure", is_flag=True, help="Let other machines in without a token and TLS.")
@click.option("--origin", "origins", multiple=True, metavar="ORIGIN", help="Let pages of this origin in.")
@click.option("--max-message", default="1M", show_default=True, callback=_parse_size, help="Bytes of one.")
@click.option(
    "--idle-timeout", type=PositiveNumber(), default=60, show_default=True, help="Seconds without a message."
)
@click.option(
    "--send-timeout", type=PositiveNumber(), default=10, show_default=True, help="Seconds without reading."
)
@click.option(
    "--drain-timeout", type=PositiveNumber(), default=10, show_default=True, help="Seconds to end in."
)
@click.option(
    "--backlog", type=_COUNT, default=1024, show_default=True, help="Connections waiting to be taken."
)
@click.option("--max-connections", type=_COUNT, default=4096, show_default=True, help="Open at a time.")
def serve(models: tuple[str, ...], **options: Any) -> int:
    """Serve MODELs, by default the built-in ones, over websockets, with a page at /.

    NAME=MODEL serves one under a name of your choice, such as fast=vad_int8.onnx beside vad.

    A client gets a stream: it sends samples and gets events. Who comes when all slots are taken is refused,
    and told when to come back. SIGTERM ends every stream properly, then the server. The protocol:
    docs/serve.md.
    """
    import asyncio

    opened = _open_models(models, options.pop("backend"), options.pop("precision"))
    settings = _settings(opened, options)
    _allow_connections(settings.max_connections)
    try:
        from streamssm.serving.app import Server
    except ImportError as error:
        from streamssm.errors import ServerError

        raise ServerError(f"a server needs {error.name}; pip install 'streamssm[serve]'") from error
    return asyncio.run(_serve(Server(opened, settings)))


def _open_models(names: tuple[str, ...], backend: str, precision: str) -> dict[str, Model]:
    import streamssm
    from streamssm.errors import UsageError
    from streamssm.model import built_in_models

    opened: dict[str, Model] = {}
    for given in names or built_in_models():
        called, source = _called(given)
        model = streamssm.load(source, backend=backend, precision=precision)
        name = called or model.manifest.name
        if name in opened:
            raise UsageError(
                f"two of the models are called {name!r}; call one of them otherwise: NAME={source}"
            )
        opened[name] = model
    if not opened:
        raise UsageError("this installation has no built-in models; say which to serve")
    return opened


def _called(given: str) -> tuple[str, str]:
    """``NAME=MODEL`` in two; a file whose name is of that form is a file."""
    name, equals, source = given.partition("=")
    return (
        (name, source)
        if equals and re.fullmatch(r"[\w.-]+", name) and not Path(given).exists()
        else ("", given)
    )


def _settings(models: dict[str, Model], options: dict[str, Any]) -> Settings:
    from streamssm.serving.settings import Settings

    block, gather = options.pop("block"), options.pop("gather")
    path = options.pop("token_file")
    if path is not None:
        options["token"] = _read_token(path, options["token"])
    return Settings(**options, blocks=_blocks(models, block), gather=_seconds(gather, "--gather"))


def _read_token(path: Path, other: str | None) -> str:
    from streamssm.errors import UsageError

    if other is not None:
        raise UsageError("--token and --token-file both say the token; give one")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {path} cannot be read: {error}") from error


def _blocks(models: dict[str, Model], block: Amount | None) -> dict[str, int]:
    from streamssm import clock
    from streamssm.cli.amount import to_items

    if block is None:
        return {}
    return {name: to_items(block, clock.input_rate(m.manifest), "--block") for name, m in models.items()}


def _seconds(amount: Amount, option: str) -> float:
    from streamssm.errors import UsageError

    number, unit = amount
    if not unit:
        raise UsageError(f"{option} {float(number):g} lacks a unit; write 4ms or 0.01s")
    return float(number / 1000 if unit == "ms" else number)


def _allow_connections(count: int) -> None:
    """Raise the limit of open files as far as it may go; each connection is one."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(server: Server) -> int:
    """Until a signal; a second one does not wait for the streams."""
    import asyncio
    import gc
    import signal
    import sys

    from streamssm.cli.app import EXIT_INTERRUPTED

    loop = asyncio.get_running_loop()
    received: list[int] = []
    first, second = asyncio.Event(), asyncio.Event()

    def note(number: int) -> None:
        (second if received else first).set()
        received.append(number)

    sys.setswitchinterval(_SWITCH)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, note, number)
    async with server:
        click.echo(_greeting(server), err=True)
        gc.collect()
        gc.freeze()  # what is there now stays: to look through it again and again would hold up the streams
        await first.wait()
        click.echo("streamssm serve: ending the streams; a second signal ends at once", err=True)
        drained = asyncio.ensure_future(server.drain())
        await asyncio.wait(
            [drained, asyncio.ensure_future(second.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        drained.cancel()
    return EXIT_INTERRUPTED if received[0] == signal.SIGINT else 0


def _greeting(server: Server) -> str:
    settings = server.settings
    models = ", ".join(f"{name} (block {block})" for name, block in server.blocks.items())
    guarded = "with a token" if settings.token is not None else "without a token"
    return (
        f"streamssm serve: {server.url} {guarded}; {models}; {settings.slots} slots, "
        f"gathered for {settings.gather * 1e3:g} ms"
    )
