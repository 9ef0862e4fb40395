"""From one sample rate to another, in pieces: any split gives the same bytes.

The filter is soxr's (HQ: linear phase, flat to 0.91 of the lower Nyquist frequency, 20 bits), whose delay
is taken out: sample i of the output lies at i / rate_out seconds. So the output lags the input while it
runs, and a flush gives the rest.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from streamssm import clock
from streamssm.errors import SourceError
from streamssm.sources.base import Array

_FURTHEST = 256  # a header that is further off is damaged: one sample would become thousands


class Resampler:
    """Frames ``[n, channels]`` of float32 at ``rate_in`` to frames at ``rate_out``, both in Hz.

    n frames in, split in any way, give ``floor(n * rate_out / rate_in + 1/2)`` frames out in all: the
    tail comes with :meth:`flush`. Equal rates pass through, without soxr.

    Raises:
        SourceError: soxr is missing, or the rates cannot be right.
    """

    def __init__(self, rate_in: float, rate_out: float, channels: int):
        furthest = max(rate_in, rate_out) / max(min(rate_in, rate_out), 1e-9)
        if not furthest <= _FURTHEST:
            raise SourceError(
                f"{rate_in:g} Hz cannot be converted to {rate_out:g} Hz, more than {_FURTHEST} to 1; check "
                "the rate"
            )
        self.rate_in, self.rate_out, self.channels = rate_in, rate_out, channels
        self.ratio = clock.exact(rate_out) / clock.exact(rate_in)
        self._soxr = None if self.ratio == 1 else _library(rate_in, rate_out)
        self._stream: Any = None  # of the stretch of input that is running
        self._taken = self._given = 0  # frames in and out, gaps included

    def push(self, frames: Array) -> Array:
        """The frames that become known by these; at equal rates, these themselves.

        Raises:
            SourceError: the frames are not ``[n, channels]``.
        """
        if frames.ndim != 2 or frames.shape[1] != self.channels:
            raise SourceError(f"frames have shape {frames.shape}, not [n, {self.channels}]; reshape them")
        frames = np.ascontiguousarray(frames, np.float32)
        self._taken += len(frames)
        if self._soxr is None or not len(frames):
            return self._counted(frames)
        if self._stream is None:
            self._stream = self._soxr.ResampleStream(
                self.rate_in, self.rate_out, self.channels, dtype="float32"
            )
        return self._counted(self._stream.resample_chunk(frames))

    def flush(self) -> Array:
        """The rest. Then the next frame is the first of a new sequence."""
        tail = self._end()
        self._taken = self._given = 0
        return tail

    def gap(self, frames: int) -> tuple[Array, int]:
        """``frames`` of the input are missing here: the rest of what came before them, and how many
        frames of the output are missing. All that come out and all that are missing then add up as if
        nothing were: times stay true, and the filter does not smear over the gap."""
        tail = self._end()
        self._taken += frames
        missing = self.total(self._taken) - self._given
        self._given += missing
        return tail, missing

    def total(self, frames: int) -> int:
        """Frames out for so many frames in."""
        return math.floor(frames * self.ratio + clock.exact(0.5))

    def needed(self, frames: int) -> int:
        """Frames in that bring about so many frames out; 1 or more."""
        return max(1, math.floor(frames / self.ratio))

    def _end(self) -> Array:
        """The tail of the stretch that runs, so that the total is exact whatever soxr rounds."""
        stream, self._stream = self._stream, None
        empty = np.zeros((0, self.channels), np.float32)
        if stream is None:
            return empty
        due = self.total(self._taken) - self._given
        tail = stream.resample_chunk(empty, last=True)[:due]
        return self._counted(np.concatenate([tail, np.zeros((due - len(tail), self.channels), np.float32)]))

    def _counted(self, frames: Array) -> Array:
        self._given += len(frames)
        return frames


def _library(rate_in: float, rate_out: float) -> Any:
    try:
        return import_module("soxr")
    except ImportError as error:
        raise SourceError(
            f"{rate_in:g} Hz to {rate_out:g} Hz needs soxr; pip install 'streamssm[audio]', or convert it "
            f"first: ffmpeg -i IN -ar {rate_out:g} OUT.wav"
        ) from error
