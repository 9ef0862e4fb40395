"""Messages into the inbox: what cannot be read and what never came are gaps at their place."""

from __future__ import annotations

import time

from streamssm.live.inbox import Inbox
from streamssm.live.messages import Message, MessageReader
from streamssm.live.order import Order
from streamssm.live.pace import Pace
from streamssm.sources.base import INVALID, Gap

_HELD_UP = 0.1  # seconds that a message took to find room
_TOLD = 3  # faults that are told in full; all are counted


class Intake:
    """Takes the messages of one source, in a receiver's thread.

    ``repeated`` counts messages that came twice and were left out, ``invalid`` those that could not be
    read. ``notes`` tells the first faults.
    """

    def __init__(
        self,
        name: str,
        inbox: Inbox,
        reader: MessageReader,
        order: Order,
        pace: Pace,
        notes: list[str],
    ):
        self.name, self.inbox, self.reader = name, inbox, reader
        self._order, self._pace, self._notes = order, pace, notes
        self.invalid = self.repeated = 0

    def take_json(self, data: bytes | str, at: float, again: bool = False) -> None:
        """Take a JSON message that came at ``at``; ``again`` if it may be a second delivery."""
        known = self.reader.columns
        self._take(self.reader.read_json(data), at, again)
        if not known and self.reader.columns:
            names = ", ".join(self.reader.columns)
            self._notes.append(f"{self.name}: columns {names}, as in the first message; --columns chooses")

    def take_binary(self, data: bytes, encoding: str, at: float) -> None:
        """Take a message of frames."""
        self._take(self.reader.read_binary(data, encoding), at, False)

    def bad(self, fault: str, frames: int | None = None) -> None:
        """Leave a message out that holds ``frames`` frames, if that is known."""
        self.invalid += 1
        self.inbox.lost(Gap(INVALID, frames))
        if self.invalid <= _TOLD:
            self._notes.append(f"{self.name}: a message was left out: {fault}")

    def _take(self, message: Message, at: float, again: bool) -> None:
        gaps = self._order.accept(message.place, again)
        if gaps is None:
            self.repeated += 1
            return
        for gap in gaps:
            self.inbox.lost(gap)
        if message.frames is None:
            self.bad(message.fault, message.place.frames)
            return
        self.inbox.put(message.frames, at)
        held_up = time.perf_counter() - at > _HELD_UP
        if (verdict := self._pace.judge(len(message.frames), at, held_up)) is not None:
            self._notes.append(f"{self.name}: {verdict}")
