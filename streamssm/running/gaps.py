"""What stands in for items that a source is known to have lost.

Stand-ins cost as much as what they stand for. So a long gap is only filled at its beginning, for the model
to settle, and the clock passes over the rest; and of what was dropped because the run is too slow just as
much is filled as brings the rows of the items before it, or dropping would win no time.
"""

from __future__ import annotations

from streamssm import clock
from streamssm.manifest import Manifest
from streamssm.sources.base import DROPPED, Gap

SECONDS = 10  # of a gap that are filled at most
ITEMS = 1000  # the same for a model without a clock


def plan(gap: Gap, manifest: Manifest, block: int) -> tuple[int, int]:
    """How many stand-ins are pushed for a gap, and how many items the clock passes over after them: all
    of it together, the latter in whole hops."""
    missing = gap.items or 0
    rate = clock.input_rate(manifest)
    limit = ITEMS if rate is None else round(SECONDS * rate)
    # after so many every item before the gap has been run and has given its outputs
    least = block + manifest.lookahead
    pushed = min(missing, least if gap.reason == DROPPED else max(limit, least))
    passed = (missing - pushed) // manifest.input.hop * manifest.input.hop
    return missing - passed, passed
