"""Memory that is free, handed back to the system between the stages of an export."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Collect what nothing refers to, and have the C library return it where it can.

    What torch frees in pieces of some megabytes would else stay with the process while the next
    stage takes as much again.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(ctypes.c_size_t(0))
