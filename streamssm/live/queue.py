"""How much of a live source may wait, and what happens to what is too much: said by the user, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from streamssm import clock
from streamssm.errors import UsageError

Policy = Literal["block", "drop-oldest", "spill"]
POLICIES: tuple[Policy, ...] = ("block", "drop-oldest", "spill")
SPILL_LIMIT = 1 << 30  # bytes
SECONDS = Fraction(2)
_UNCLOCKED = 4096  # items of a model without a clock


@dataclass(frozen=True)
class Queue:
    """``items`` of the model or ``seconds`` may wait in memory (default: 2 s, or 4096 items of a model
    without a clock). ``policy`` is what happens beyond; ``spill`` writes up to ``spill_limit`` bytes to a
    temporary file in ``folder`` (default: TMPDIR, else /var/tmp)."""

    items: int | None = None
    seconds: Fraction | None = None
    policy: Policy = "block"
    spill_limit: int = SPILL_LIMIT
    folder: Path | None = None

    def capacity(self, rate: float | None, model_rate: float | None) -> int:
        """Frames of a source of ``rate`` frames a second (None: the model's own) that may wait.

        Raises:
            UsageError: seconds for a model without a clock.
        """
        own = None if model_rate is None else clock.exact(model_rate)
        here = own if rate is None else clock.exact(rate)
        if self.items is not None:
            factor = Fraction(1) if own is None or here is None else here / own
            return max(1, math.ceil(self.items * factor))
        if here is None:
            if self.seconds is not None:
                raise UsageError(
                    f"a queue of {float(self.seconds):g} s: the model has no clock; give a number of items"
                )
            return _UNCLOCKED
        return max(1, math.ceil((SECONDS if self.seconds is None else self.seconds) * here))
