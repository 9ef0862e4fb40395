"""What GPU this machine has, without a library that has to be installed for it."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def compute_capability() -> int | None:
    """That of the first GPU as two or three digits, 87 for 8.7; None without one."""
    for name in _DRIVERS:
        with suppress(OSError, AttributeError):
            return _asked(ctypes.CDLL(name))
    return None


def device_name() -> str:
    """What the driver calls the first GPU; empty without one."""
    for name in _DRIVERS:
        with suppress(OSError, AttributeError):
            return _named(ctypes.CDLL(name))
    return ""


def _named(driver: ctypes.CDLL) -> str:
    device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    return "" if driver.cuDeviceGetName(text, len(text), device) else text.value.decode("utf-8", "replace")


def _asked(driver: ctypes.CDLL) -> int | None:
    device, values = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for value, attribute in zip(values, (_MAJOR, _MINOR), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    major, minor = (value.value for value in values)
    return 10 * major + minor
