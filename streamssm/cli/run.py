"""``streamssm run``: push a source through a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from streamssm.cli.amount import Amount, PositiveNumber, parse_amount, parse_size
from streamssm.cli.precision import precision_option
from streamssm.sinks import FORMATS

INPUT_FORMATS = (
    "auto",
    "wav",
    "audio",
    "f32le",
    "f64le",
    "s16le",
    "s24le",
    "s32le",
    "u8",
    "npy",
    "csv",
    "json",
    "jsonl",
    "text",
    "bytes",
    "fasta",
    "fastq",
    "bam",
    "cram",
    "sam",
)
_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)


@dataclass(frozen=True)
class Options:
    """What the user asked for, named as on the command line."""

    model: str
    source: str
    chunk: Amount | None
    block: int | None
    backend: str
    precision: str
    emit: str | None
    decide: float | None
    generate: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    input_format: str
    rate: float | None
    channels: int | None
    channel: int | None
    columns: tuple[str, ...]
    time_column: str | None
    on_bad: str
    allow_truncated: bool
    allow_nonfinite: bool
    on_gap: str
    on_overrun: str
    queue: Amount | None
    spill_limit: int
    reconnect: int | None
    max_message: int
    resume: Path | None
    from_start: bool
    save_state: Path | None
    save_every: float | None
    stats: Path | None
    output: Path | None
    format: str | None
    quiet: bool


def _parse_columns(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = () if value is None else tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"{value!r} has an empty name; write a,b,c.")
    return names


def _parse_reconnect(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None or value.isdigit():
        return None if value is None else int(value)
    if value != "off":
        raise click.BadParameter(f"{value!r} is neither a number of attempts nor 'off'.")
    return 0


@click.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "--chunk", metavar="AMOUNT", callback=parse_amount, help="Read at once: 160, 7ms, 1s; default: a block."
)
@click.option("--block", type=_COUNT, help="Items per backend call; default: the model's.")
@click.option("--backend", default="auto", show_default=True, help="Where the model runs.")
@precision_option
@click.option(
    "--emit",
    type=click.Choice(["events", "items", "tokens", "text", "audio"]),
    help="Default: events, if the model has any; tokens, if it foretells text; else items.",
)
@click.option(
    "--decide",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="One line a record: the first class that reaches probability P, and where.",
)
@click.option("--generate", type=_COUNT, metavar="N", help="Continue the text by N tokens.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Of the draw; 0 takes the likeliest. [1]")
@click.option("--top-k", type=_COUNT, help="Draw among the K likeliest tokens. [all]")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among the likeliest of sum P. [1]"
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the draw; one seed, one text. [0]")
@click.option(
    "--input-format", type=click.Choice(INPUT_FORMATS), default="auto", help="Default: told by the data."
)
@click.option("--rate", type=PositiveNumber(), help="Items a second of headerless data.")
@click.option("--channels", type=_COUNT, help="Interleaved channels of raw samples.")
@click.option("--channel", type=_COUNT, help="Take this channel alone, counting from 1.")
@click.option("--columns", metavar="A,B", callback=_parse_columns, help="Columns or keys to take, in order.")
@click.option("--time-column", metavar="NAME", help="When a row was measured; shows gaps.")
@click.option(
    "--on-bad",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="A row, read or file that cannot be read.",
)
@click.option("--allow-truncated", is_flag=True, help="Take a recording that ends before its header says.")
@click.option("--allow-nonfinite", is_flag=True, help="Pass NaN and Inf on instead of refusing them.")
@click.option(
    "--on-gap",
    type=click.Choice(["fill", "skip"]),
    default="fill",
    show_default=True,
    help="Lost items: put silence, or the last row, in their place; or count on without.",
)
@click.option(
    "--on-overrun",
    type=click.Choice(["block", "drop-oldest", "spill"]),
    default="block",
    show_default=True,
    help="A live source that is faster than the model: make it wait, or lose, or write to disk.",
)
@click.option("--queue", metavar="AMOUNT", callback=parse_amount, help="May wait in memory. [2s]")
@click.option(
    "--spill-limit",
    metavar="SIZE",
    default="1G",
    show_default=True,
    callback=parse_size,
    help="May wait on disk; then the oldest are dropped.",
)
@click.option(
    "--reconnect", metavar="N|off", callback=_parse_reconnect, help="Attempts in a row. [until it is back]"
)
@click.option("--max-message", metavar="SIZE", default="1M", show_default=True, callback=parse_size)
@click.option("--resume", type=_FILE, help="Continue the run saved in this file.")
@click.option("--from-start", is_flag=True, help="With --resume: take the source from its beginning.")
@click.option("--save-state", type=_FILE, help="At the end save the run here instead of ending it.")
@click.option("--save-every", type=PositiveNumber(), metavar="SECONDS", help="Save it also every so often.")
@click.option("--stats", type=_FILE, help="Write the final report as JSON.")
@click.option("-o", "--output", type=_FILE, help="Write the data here instead of standard output.")
@click.option(
    "--format", type=click.Choice(list(FORMATS)), help="Default: told by the name of the output, else jsonl."
)
@click.option("-q", "--quiet", is_flag=True, help="No report.")
def run(**options: Any) -> int:
    """Push SOURCE through MODEL and print what it says.

    MODEL is a built-in name or a file. SOURCE is an audio file, .npy, .csv, .jsonl, FASTA, FASTQ or BAM, text
    for models of bytes, nucleotides or a tokenizer, a folder of such files, - for standard input, tail:FILE
    for one that grows, sim:FILE to play one as if live, mic, ws:// or mqtt://. A text is scored token by
    token, or continued with --generate.

    The lines are the same for every --chunk, and for a file and its samples on standard input.
    "time" is where an item starts, in seconds of input; look-ahead is already taken out. Ctrl-C
    ends the stream properly: what is pending is flushed, an open event is closed.

    With --save-state, --save-every and -o a run that was killed goes on with --resume as if nothing had
    been: no line is lost or doubled, if SOURCE can be read again.
    """
    import streamssm
    from streamssm.cli.job import Job

    asked = Options(**options)
    opened = streamssm.load(asked.model, backend=asked.backend, precision=asked.precision)
    return Job(opened, asked).go()
