"""Ctrl-C and SIGTERM: finish the push at hand, then stop; never in the middle of one."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from streamssm.waiting import Interrupted, Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Turns the first signal into a request to stop; a second one stops at once.

    The request is noted in ``stop``, where waits for input see it. Nothing is raised out of the handler: that
    could lose what a read has just returned.
    """

    def __init__(self) -> None:
        self.stop = Stop()
        self._signalled = False
        self._before: dict[int, Any] = {}
        self._wakeup = -1

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self._signalled

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        if self.stop.descriptor is not None:
            # a handler runs in the main thread only once that wakes, whichever thread the signal came to
            self._wakeup = signal.set_wakeup_fd(self.stop.descriptor, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stop.descriptor is not None:
            signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        self.stop.request()
        if self.stop.exposed:  # on Windows, where one cannot wait for two things at once
            raise Interrupted
