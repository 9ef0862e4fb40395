"""What every source shares: the contract, the request, and the checks on rate and channels."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from streamssm.alphabet import Encoder, Piece
from streamssm.errors import SourceError, UsageError
from streamssm.live.queue import Queue
from streamssm.manifest import Input

Array = npt.NDArray[Any]
_SKIP = 1 << 16  # items read at a time, to be left out


@dataclass(frozen=True)
class Request:
    """What the model takes, and what the user said about the source.

    ``format`` is a name of ``streamssm.sources.FORMATS`` or "auto"; ``rate`` and ``channels``
    describe data that carry no header; ``channel`` (counting from 1) picks one of several; ``encoder``
    turns text into the model's tokens, and may be in the middle of one. ``names`` are the columns of a
    table or the keys of JSON objects to take, in the model's order; ``time_column`` is the one that says
    when a row was measured. ``on_bad`` says what becomes of a row or a file that cannot be read;
    ``allow_truncated`` takes a recording that ends before its header says. ``queue`` says how much of a
    live source may wait, ``reconnect`` how many attempts in a row may fail to get a lost connection back
    (None: any number, once it was there), ``max_message`` how many bytes a message may have.
    """

    input: Input
    format: str = "auto"
    rate: float | None = None
    channels: int | None = None
    channel: int | None = None
    encoder: Encoder | None = None
    names: tuple[str, ...] = ()
    time_column: str | None = None
    on_bad: Literal["refuse", "skip"] = "refuse"
    allow_truncated: bool = False
    queue: Queue = field(default_factory=Queue)
    reconnect: int | None = None
    max_message: int = 1 << 20

    @property
    def columns(self) -> int:
        """Numbers in one item of the model's input."""
        return math.prod(self.input.shape)

    def with_format(self, format: str) -> Request:  # noqa: A002
        """The same request for another format."""
        return replace(self, format=format)


#: Why items are missing: our own queue was full, the sound driver lost them, numbers or times show it, a
#: connection was away, they could not be read.
DROPPED, DEVICE, MISSING = "dropped", "device", "missing"
DISCONNECTED, INVALID = "disconnected", "invalid"


@dataclass(frozen=True)
class Gap:
    """Items that are missing from a live source: how many, if that is known, or for how long.

    ``seconds`` is what a clock said of a connection that was lost; it is never turned into items.
    """

    reason: str
    items: int | None = None
    seconds: float | None = None


class Source(ABC):
    """Items of the model's own shape and dtype, read in order, once.

    ``total`` is the number of items, or None where only the end will tell. ``due`` is the
    ``time.perf_counter`` moment at which a paced source owed the latest items; other sources
    leave it None. ``taken`` is what the latest items stand for, of a source of text.

    A source of several sequences (a folder, reads) gives each its own name in ``record``; a read never
    crosses from one into the next. A read of no items ends the record that is named then; if ``record`` is
    None there is none to end. ``more`` says whether to read on after it: of a pipe that is not known
    before its end, so the last read of all may end nothing.
    ``gaps`` are what was lost before the latest items, or before the end after a read of none. A
    ``replayable`` source gives the same items whenever it is opened, so that a run that was cut off can
    go on at the item where it was. One that ``grows`` gives those of a file that others still write to, from
    its beginning, as long as it is that file. ``notes`` tell the user what was done to the data
    (converted, mixed, left out); more may be appended while it is read. A source closes what it opened on
    leaving a ``with`` block.

    A read that raises SourceError comes after all items before the damage were given.
    """

    name: str
    total: int | None = None
    due: float | None = None
    taken: Sequence[Piece] = ()
    record: str | None = None
    more: bool = False
    gaps: Sequence[Gap] = ()
    replayable: bool = False
    grows: bool = False
    notes: Sequence[str] = ()

    @abstractmethod
    def read(self, count: int) -> Array:
        """The next items ``[n, *shape]``, ``1 <= n <= count`` as soon as there are any; n = 0 at the end
        of the source, or of one of its records. A request to stop may be answered with all that was
        received of a pipe, once.

        Raises:
            SourceError: the data are damaged or end in the middle of an item.
        """

    def skip(self, count: int) -> None:
        """Leave out the next ``count`` items, as if they had been read.

        Raises:
            SourceError: there are not so many.
        """
        left = count
        while left:
            got = len(self.read(min(left, _SKIP)))
            if not got:
                raise SourceError(f"{self.name} ends after {count - left} items, {count} were to be left out")
            left -= got

    def skip_record(self) -> None:
        """Leave out the rest of the record that is running, or all of the next one: what follows is the
        record after it, if ``more`` says that there is one."""
        while len(self.read(_SKIP)):
            pass

    def close(self) -> None:
        """Release what the source holds: nothing, unless it says otherwise."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Closable(Protocol):
    """Anything with ``close()``."""

    def close(self) -> None:
        """Release what it holds."""


@contextmanager
def closed_on_error(resource: Closable) -> Iterator[None]:
    """Close the resource if the block fails; otherwise it is the block's to keep."""
    try:
        yield
    except BaseException:
        resource.close()
        raise


def check_path(path: Path) -> Path:
    """The path of a readable, non-empty file.

    Raises:
        SourceError: missing, a folder, unreadable or empty.
    """
    if path.is_dir():
        raise SourceError(f"{path} is a folder; name one file in it")
    if not path.exists():
        raise SourceError(f"{path} does not exist; check the path")
    if not os.access(path, os.R_OK):
        raise SourceError(f"{path} cannot be read: you lack the permission")
    if not path.is_file():  # a pipe has no size to judge, and its writer would see it opened and closed
        return path
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if empty:
        raise SourceError(f"{path} is empty; there is nothing to push")
    return path


def check_rate(name: str, rate: float, request: Request, convertible: bool = False) -> None:
    """Refuse data whose own rate is not the model's, unless they are convertible.

    Raises:
        SourceError: the rates differ, or there is none.
        UsageError: ``--rate`` contradicts the data.
    """
    if not rate > 0:
        raise SourceError(f"{name} says {rate:g} Hz, which is no rate; its header is damaged")
    if request.rate is not None and request.rate != rate:
        raise UsageError(f"{name} says {rate:g} Hz, --rate says {request.rate:g}; leave --rate out")
    wanted = request.input.rate
    if wanted is not None and rate != wanted and not convertible:
        raise SourceError(
            f"{name} has {rate:g} items a second, the model takes {wanted:g}; only audio is converted: "
            "resample it first"
        )


def check_declared_rate(name: str, request: Request) -> None:
    """The same for data without a header, whose only rate is the ``--rate`` of the user."""
    if request.rate is not None:
        check_rate(name, request.rate, request)


def channel_map(
    name: str, channels: int, request: Request, word: str = "channels", given: int | None = None
) -> Callable[[Array], Array]:
    """A function from ``[n, channels]`` to ``[n, *shape]``; ``word`` is what the data calls them, ``given``
    how many it has, where they were mixed before.

    Raises:
        SourceError: the model takes another number of channels and none was picked.
        UsageError: ``--channel`` is out of range, or ``--channels`` contradicts the data.
    """
    given = channels if given is None else given
    if request.channels not in (None, given):
        raise UsageError(f"{name} has {given} {word}, --channels says {request.channels}; leave it out")
    pick, wanted, shape = request.channel, request.columns, request.input.shape
    if pick is not None:
        if not 1 <= pick <= channels:
            raise UsageError(f"--channel {pick}: {name} has {word} 1 to {channels}")
        if wanted != 1:
            raise UsageError(
                f"--channel {pick} picks one channel, but the model takes {wanted}; leave it out"
            )
        return lambda rows: np.ascontiguousarray(rows[:, pick - 1 : pick]).reshape(len(rows), *shape)
    if channels != wanted:
        remedy = f"pick one with --channel 1 to {channels}" if wanted == 1 else f"give it {wanted} {word}"
        if word == "columns":
            remedy += ", or name them with --columns"
        raise SourceError(f"{name} has {channels} {word}, the model takes {wanted}; {remedy}")
    return lambda rows: rows.reshape(len(rows), *shape)


def check_floats(name: str, what: str, request: Request) -> None:
    """Refuse to feed audio or raw numbers to a model of tokens.

    Raises:
        SourceError: the model's input is not float32.
    """
    if request.input.dtype != "float32":
        raise SourceError(
            f"{name}: {what} cannot feed a model of {request.input.kind} ({request.input.dtype}); "
            "use text, .npy or .csv"
        )


def check_names(format: str, request: Request) -> None:  # noqa: A002
    """Refuse names of columns for data that have none.

    Raises:
        UsageError: ``--columns`` or ``--time-column`` for something else than a table or JSON.
    """
    option = "--columns" if request.names else "--time-column" if request.time_column is not None else None
    if option is not None and format not in ("csv", "json", "jsonl"):
        raise UsageError(f"{option} names columns of a table or of JSON, and {format} has none; leave it out")
