"""Puts a source of messages together: reader, inbox, connection, converter."""

from __future__ import annotations

from collections.abc import Callable

from streamssm import clock
from streamssm.errors import UsageError
from streamssm.live.connection import Connection
from streamssm.live.inbox import Inbox
from streamssm.live.intake import Intake
from streamssm.live.messages import MessageReader
from streamssm.live.order import Order
from streamssm.live.pace import Pace
from streamssm.live.source import LiveSource
from streamssm.sources.base import Request
from streamssm.sources.convert import Converter


def open_messages(name: str, request: Request, connect: Callable[[Intake], Connection]) -> LiveSource:
    """A source whose connection, made by ``connect``, takes messages in.

    Raises:
        SourceError: the data do not fit the model, or a library is missing.
        UsageError: the options contradict each other.
    """
    channels = _channels(name, request)
    converter = Converter(name, request.rate, channels, request)
    reader = MessageReader(name, request, channels)
    inbox = make_inbox(request, channels, request.rate)
    rate = request.input.rate if request.rate is None else request.rate
    order = Order(None if rate is None else clock.exact(rate))
    notes = list(converter.notes)
    intake = Intake(name, inbox, reader, order, Pace(rate), notes)
    source = LiveSource(name, inbox, connect(intake), converter)
    source.notes = notes
    return source


def make_inbox(request: Request, channels: int, rate: float | None) -> Inbox:
    """An inbox of frames ``[channels]`` that come at ``rate`` (None: the model's)."""
    queue = request.queue
    capacity = queue.capacity(rate, request.input.rate)
    shape, dtype = (channels,), request.input.dtype
    return Inbox(shape, dtype, capacity, queue.policy, queue.folder, queue.spill_limit)


def _channels(name: str, request: Request) -> int:
    """Numbers in a frame of the data."""
    if request.names and request.channels not in (None, len(request.names)):
        raise UsageError(
            f"--columns names {len(request.names)} columns, --channels says {request.channels}; leave it out"
        )
    if request.channel is not None and request.channels is None and not request.names:
        raise UsageError(
            f"--channel {request.channel}: {name} needs --channels N, how many a message interleaves"
        )
    return len(request.names) or request.channels or request.columns
