"""Arrays saved by numpy: ``[T, *shape]``, mapped rather than loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Array, Request, Source, channel_map, check_declared_rate, check_path


class ArraySource(Source):
    """Items of an array ``[T, *shape]``."""

    def __init__(self, name: str, array: Array):
        self.name, self.total = name, len(array)
        self._array = array
        self._next = 0

    def skip(self, count: int) -> None:
        """Leave out rows without reading them."""
        leap = min(count, len(self._array) - self._next)
        self._next += leap
        super().skip(count - leap)

    def read(self, count: int) -> Array:
        """The next rows of the array, copied out of the mapping."""
        items = np.array(self._array[self._next : self._next + count])
        self._next += len(items)
        return items


def open_file(path: Path, request: Request) -> Source:
    """A ``.npy`` file.

    Raises:
        SourceError: not an array file, or of another dtype, rank or width than the model takes.
    """
    check_path(path)
    check_declared_rate(str(path), request)
    try:
        with np.errstate(all="raise"):  # a product of absurd sizes would only warn
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever the parsers below numpy raise
        raise SourceError(f"{path} is not a numpy array file, or it is cut short: {error}") from error
    if not isinstance(array, np.ndarray):
        raise SourceError(f"{path} holds several arrays; save one with numpy.save")
    _check_dtype(path, array, request)
    shape = request.input.shape
    if request.channel is not None and array.ndim == 2:
        array = channel_map(str(path), array.shape[1], request, "columns")(array)
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        wanted = ", ".join(["T", *map(str, shape)])
        raise SourceError(f"{path} has shape {array.shape}, the model takes [{wanted}]; reshape it")
    if not len(array):
        raise SourceError(f"{path} holds no items; there is nothing to push")
    source = ArraySource(str(path), array)
    source.replayable = True
    return source


def _check_dtype(path: Path, array: Array, request: Request) -> None:
    wanted = request.input.dtype
    fits = array.dtype.kind in "iu" if wanted == "int64" else array.dtype == np.float32
    if not fits:
        raise SourceError(
            f"{path} has dtype {array.dtype}, the model takes {wanted}; save array.astype('{wanted}')"
        )
