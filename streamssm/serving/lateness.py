"""How long a client waits: from the message that completes a block to the block's result."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_RECENT = 512  # blocks


class Lateness:
    """Of the latest blocks of one stream; every one is also given to ``observe``, in seconds."""

    def __init__(self, observe: Callable[[float], object]):
        self._observe = observe
        self._arrivals: deque[tuple[int, float]] = deque()  # position after a message, when it came
        self._latest: deque[float] = deque(maxlen=_RECENT)

    def expect(self, position: int, at: float) -> None:
        """A message that came ``at`` (``time.perf_counter``) completes the block before ``position``."""
        self._arrivals.append((position, at))

    def take_back(self) -> None:
        """The last message was refused."""
        self._arrivals.pop()

    def forget(self) -> None:
        """What is expected will not come."""
        self._arrivals.clear()

    def note(self, done: int) -> None:
        """The results of the items up to ``done`` are there now."""
        while self._arrivals and self._arrivals[0][0] < done:
            self._arrivals.popleft()
        if self._arrivals:
            took = time.perf_counter() - self._arrivals[0][1]
            self._latest.append(took)
            self._observe(took)

    def quantile(self, share: float) -> float | None:
        """Milliseconds; None before the first result."""
        found = sorted(self._latest)
        return round(1e3 * found[min(len(found) - 1, int(share * len(found)))], 3) if found else None
