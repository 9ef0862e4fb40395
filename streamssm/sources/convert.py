"""Frames as they were recorded to a model's items: one channel picked or all mixed, then the model's rate."""

from __future__ import annotations

import numpy as np

from streamssm.sources.base import Array, Request, channel_map, check_rate
from streamssm.sources.resample import Resampler


class Converter:
    """Frames ``[n, channels]`` of float32 at ``rate`` Hz to items ``[m, *shape]`` at the model's rate.

    Without ``--channel`` several channels are mixed to their mean for a model of one. Only samples are
    mixed and resampled: rows of features that do not fit are refused. ``rate`` None says that the frames come
    at the model's rate. ``notes`` say what is converted.

    Raises:
        SourceError: the model takes another number of channels or another rate of features, or soxr is
            missing.
        UsageError: the options contradict the data.
    """

    def __init__(self, name: str, rate: float | None, channels: int, request: Request):
        self.notes: list[str] = []
        wanted, sound = request.input.rate, request.input.kind == "samples"
        if rate is not None:
            check_rate(name, rate, request, convertible=sound)
        self._mixes = sound and request.columns == 1 < channels and request.channel is None
        if self._mixes:
            self.notes.append(f"{name}: {channels} channels are mixed to their mean; --channel N takes one")
        self._to_items = channel_map(name, 1 if self._mixes else channels, request, given=channels)
        self._shape = request.input.shape
        self._resampler: Resampler | None = None
        if sound and wanted is not None and rate is not None and rate != wanted:
            self._resampler = Resampler(rate, wanted, request.columns)
            self.notes.append(f"{name}: {rate:g} Hz is converted to the model's {wanted:g} Hz")

    @property
    def one_to_one(self) -> bool:
        """Whether every frame becomes an item at once."""
        return self._resampler is None

    def push(self, frames: Array) -> Array:
        """The items that become known by these frames."""
        items = self._to_items(mean(frames) if self._mixes else frames)
        if self._resampler is None:
            return items
        return self._shaped(self._resampler.push(items.reshape(len(items), -1)))

    def flush(self) -> Array:
        """The rest. Then the next frame is the first of a new sequence."""
        if self._resampler is None:
            return np.zeros((0, *self._shape), np.float32)
        return self._shaped(self._resampler.flush())

    def gap(self, frames: int) -> tuple[Array, int]:
        """``frames`` are missing here: the rest of the items before them, and how many items are missing."""
        if self._resampler is None:
            return np.zeros((0, *self._shape), np.float32), frames
        tail, missing = self._resampler.gap(frames)
        return self._shaped(tail), missing

    def total(self, frames: int) -> int:
        """Items for so many frames."""
        return frames if self._resampler is None else self._resampler.total(frames)

    def needed(self, items: int) -> int:
        """Frames that bring about so many items, or a little fewer; 1 or more."""
        return items if self._resampler is None else self._resampler.needed(items)

    def _shaped(self, frames: Array) -> Array:
        return frames.reshape(len(frames), *self._shape)


def mean(frames: Array) -> Array:
    """The mean of the channels ``[n, 1]``, in float32 and channel by channel: the same for every split."""
    total = frames[:, :1].astype(np.float32)
    for channel in range(1, frames.shape[1]):
        total += frames[:, channel : channel + 1]
    return total / np.float32(frames.shape[1])
