"""A receiver in a thread of its own that opens its connection again when it is lost."""

from __future__ import annotations

import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from threading import Event, Thread

from streamssm import waiting
from streamssm.errors import SourceError
from streamssm.live.inbox import Inbox
from streamssm.sources.base import DISCONNECTED, Gap

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a connection is opened again
_JITTER = 0.1  # so that many receivers of one server that went away do not all come back at once
_PATIENCE = 1.0  # seconds that a thread may take to notice that it is to stop


class LostError(Exception):
    """The connection was lost, or could not be had; it may be there later."""


class Connection(ABC):
    """Keeps :meth:`session` going and puts what it receives into the inbox.

    A connection that is lost is opened again after 0.5 s, 1 s, 2 s ... 30 s; once data have come, or it
    has held for half a minute, the wait starts over. In the sequence there is then a gap of unknown
    length that tells the seconds.
    ``reconnect`` is how many attempts in a row may fail, 0 to give up at once; None does not give up, but
    wants the very first attempt to succeed, so that a wrong address is told at once.

    Whatever ends the thread ends the inbox: there is no reader who waits for ever.
    """

    def __init__(self, name: str, inbox: Inbox, reconnect: int | None):
        self.name, self.inbox = name, inbox
        self.stopping = Event()
        self._reconnect = reconnect
        self._settled = Event()  # the first attempt has succeeded, or everything is over
        self._failure: SourceError | None = None
        self._lost_at: float | None = None
        self._since = math.inf  # when the latest session began to hold
        self._ever = False
        self._waits = _waits()
        self._failed = 0
        self._thread: Thread | None = None

    @abstractmethod
    def session(self) -> None:
        """Open the connection, call :meth:`connected`, and receive; return at the proper end of the data.

        Raises:
            LostError: the connection failed or broke.
            SourceError: it makes no sense to try again.
        """

    @abstractmethod
    def hang_up(self) -> None:
        """Break the session, from another thread, at any time."""

    def start(self) -> None:
        """Start to receive; wait until the first connection is there.

        Raises:
            SourceError: it cannot be had.
        """
        self._thread = waiting.started("streamssm-receiver", self._run)
        for left in waiting.slices(None):
            if self._settled.wait(left):
                break
        if not self._ever and self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Hang up, and wait until the thread has ended; one that is just connecting is not waited for."""
        self.stopping.set()
        self.hang_up()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def connected(self) -> None:
        """The session is there: what comes next follows on a gap if there was one before."""
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self.inbox.lost(Gap(DISCONNECTED, None, round(away, 3)))
        self._lost_at, self._ever, self._since = None, True, time.monotonic()
        self._settled.set()

    def alive(self) -> None:
        """The connection works: the next loss is a new one."""
        if self._failed:
            self._waits, self._failed = _waits(), 0

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                try:
                    self.session()
                    break
                except LostError as error:
                    self._wait(error)
        except SourceError as error:
            self._failure = error
        except Exception as error:  # whatever it is, the reader must not wait for ever
            self._failure = SourceError(f"{self.name}: unexpected {type(error).__name__}: {error}")
        finally:
            self.inbox.end(self._failure)
            self._settled.set()

    def _wait(self, error: LostError) -> None:
        """Wait before the next attempt, or raise that there is none."""
        if self.stopping.is_set():
            return
        now = time.monotonic()
        if now - self._since > LONGEST_WAIT:
            self.alive()
        self._since = math.inf
        self._lost_at = now if self._lost_at is None and self._ever else self._lost_at
        self._failed += 1
        if not self._ever and self._reconnect is None:
            raise SourceError(
                f"{self.name} cannot be reached: {error}; check the address, or wait for it with --reconnect"
            ) from error
        if self._reconnect is not None and self._failed > self._reconnect:
            again = "to come back" if self._ever else "after it"
            tries = f", and {self._reconnect} attempts {again} failed" if self._reconnect else ""
            what = "was lost" if self._ever else "cannot be reached"
            raise SourceError(
                f"{self.name} {what}: {error}{tries}; raise --reconnect to try longer"
            ) from error
        self.stopping.wait(next(self._waits))


def _waits() -> Iterator[float]:
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(1 - _JITTER, 1 + _JITTER)
        wait = min(2 * wait, LONGEST_WAIT)
