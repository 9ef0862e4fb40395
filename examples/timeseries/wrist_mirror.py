"""The other arm: what a watch on the right wrist would have measured of a movement of the left one."""

from __future__ import annotations

import numpy as np

#: The body is mirrored, the watch is not: it is worn with its dial outwards and its twelve away from the
#: hand's owner on either wrist, so that only the axis along the forearm points the other way. Acceleration
#: is a vector and changes sign along that axis; rotation is a pseudovector and changes sign along the others.
MIRROR = np.array([-1, 1, 1, 1, -1, -1], np.float32)


def mirrored(x: np.ndarray) -> np.ndarray:
    """x [..., 6] of one arm -> what the other would have given."""
    return x * MIRROR
