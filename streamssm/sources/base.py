"""What every source shares: the contract, the request, and the checks on rate and channels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from streamssm.alphabet import Encoder, Piece
from streamssm.errors import SourceError, UsageError
from streamssm.manifest import Input

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Request:
    """What the model takes, and what the user said about the source.

    ``format`` is a name of ``streamssm.sources.FORMATS`` or "auto"; ``rate`` and ``channels``
    describe data that carry no header; ``channel`` (counting from 1) picks one of several; ``encoder``
    turns text into the model's tokens, and may be in the middle of one.
    """

    input: Input
    format: str = "auto"
    rate: float | None = None
    channels: int | None = None
    channel: int | None = None
    encoder: Encoder | None = None

    @property
    def columns(self) -> int:
        """Numbers in one item of the model's input."""
        return math.prod(self.input.shape)

    def with_format(self, format: str) -> Request:  # noqa: A002
        """The same request for another format."""
        return replace(self, format=format)


class Source(ABC):
    """Items of the model's own shape and dtype, read in order, once.

    ``total`` is the number of items, or None where only the end will tell. ``due`` is the
    ``time.perf_counter`` moment at which a paced source owed the latest items; other sources
    leave it None. ``taken`` is what the latest items stand for, of a source of text.
    A source closes what it opened on leaving a ``with`` block.
    """

    name: str
    total: int | None = None
    due: float | None = None
    taken: Sequence[Piece] = ()

    @abstractmethod
    def read(self, count: int) -> Array:
        """The next items ``[n, *shape]``, ``1 <= n <= count`` as soon as there are any; n = 0 at the end.

        Raises:
            SourceError: the data are damaged or end in the middle of an item.
        """

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
    try:
        with path.open("rb") as file:
            # a pipe or a device has no size to judge, and reading from it would lose data
            empty = path.is_file() and not file.read(1)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if empty:
        raise SourceError(f"{path} is empty; there is nothing to push")
    return path


def check_rate(name: str, rate: float, request: Request) -> None:
    """Refuse data whose own rate is not the model's.

    Raises:
        SourceError: the rates differ.
        UsageError: ``--rate`` contradicts the data.
    """
    if request.rate is not None and request.rate != rate:
        raise UsageError(f"{name} says {rate:g} Hz, --rate says {request.rate:g}; leave --rate out")
    wanted = request.input.rate
    if wanted is not None and rate != wanted:
        raise SourceError(
            f"{name} has {rate:g} items a second, the model takes {wanted:g}; convert it first, for audio: "
            f"ffmpeg -i IN -ar {wanted:g} OUT.wav"
        )


def check_declared_rate(name: str, request: Request) -> None:
    """The same for data without a header, whose only rate is the ``--rate`` of the user."""
    if request.rate is not None:
        check_rate(name, request.rate, request)


def channel_map(
    name: str, channels: int, request: Request, word: str = "channels"
) -> Callable[[Array], Array]:
    """A function from ``[n, channels]`` to ``[n, *shape]``; ``word`` is what the data calls them.

    Raises:
        SourceError: the model takes another number of channels and none was picked.
        UsageError: ``--channel`` is out of range, or ``--channels`` contradicts the data.
    """
    if request.channels not in (None, channels):
        raise UsageError(f"{name} has {channels} {word}, --channels says {request.channels}; leave it out")
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
