"""Decides whether a chunk may enter a stream. A chunk is taken whole or refused whole, and
nothing is cast silently: a wrong scale or a rounded sample would only show in the results."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.errors import InputError
from streamssm.manifest import Input

Array = npt.NDArray[Any]

_INT64_MAX = np.iinfo(np.int64).max


class ChunkRule:
    """What a stream accepts: ``[T, *shape]``, or ``[batch, T, *shape]`` with a batch."""

    def __init__(self, spec: Input, batch: int | None, allow_nonfinite: bool) -> None:
        self.spec = spec
        self.batch = batch
        self.allow_nonfinite = allow_nonfinite
        self.dtype = np.dtype(spec.dtype)
        self._integers = self.dtype.kind == "i"
        bounded = self._integers and spec.vocabulary is not None
        self._last = (spec.vocabulary or 0) - 1 if bounded else None  # the last token
        self._anything = not bounded and (allow_nonfinite or self._integers)

    def watch(self, values: Array) -> tuple[Callable[[], object], bytearray]:
        """A function that writes one byte for each value that the buffer ``values`` holds now,
        0 for an unacceptable one, and the bytes.

        Every push runs it. Searching the bytes for a 0 costs less than numpy's reductions,
        and neither allocates.
        """
        if self._anything:
            return int, bytearray(b"\1")  # any function that does nothing, cheaply
        flags = bytearray(values.size)
        flag = np.frombuffer(flags, np.bool_).reshape(values.shape)
        test, operands = self._test(values)
        return partial(test, *operands, flag), flags

    def _acceptable(self, values: Array) -> bool:
        if self._anything:
            return True
        test, operands = self._test(values)
        return bool(test(*operands).all())

    def _test(self, values: Array) -> tuple[np.ufunc, tuple[Any, ...]]:
        """The function, with its operands, that is true for acceptable values."""
        if self._last is not None:
            # seen as unsigned, a negative number is a large one: one comparison does both ends
            return np.less_equal, (values.view(np.uint64), np.uint64(self._last))
        return np.isfinite, (values,)

    def plain(self, chunk: object) -> bool:
        """Whether nothing is to be said about ``chunk [T, *shape]``, which may then go in as it is: a
        cheap test that passes the usual chunk; others are for :meth:`accept`. Not with a batch."""
        shape = self.spec.shape
        if type(chunk) is not np.ndarray or chunk.dtype is not self.dtype or chunk.shape[1:] != shape:
            return False
        if chunk.ndim != len(shape) + 1 or self._last is not None:
            return False
        if self._anything:
            return True
        flat = chunk if chunk.ndim == 1 else chunk.reshape(-1)
        # finite only if every item is, and at half the cost of a test of each
        return math.isfinite(flat.dot(flat))

    def accept(self, chunk: object) -> Array:
        """The chunk as ``[batch, T, *shape]`` in the model's dtype.

        Raises:
            InputError: not a numeric array, wrong dtype or shape, NaN or infinity, or a
                token out of range.
        """
        array = self._array(chunk)
        self._check_shape(array)
        array = self._typed(array)
        if self.batch is None:
            array = array[None]
        if not self._acceptable(array):
            raise InputError(self._value_fault(array[0] if self.batch is None else array))
        return array

    def accept_rows(self, chunks: object, count: int) -> Array:
        """Chunks of ``count`` streams, as ``[count, T, *shape]`` in the model's dtype; for a rule without
        a batch.

        Raises:
            InputError: as of :meth:`accept`.
        """
        shape = self.spec.shape
        if type(chunks) is np.ndarray and chunks.size and len(chunks) == count:
            fits = chunks.ndim == 2 + len(shape) and chunks.shape[2:] == shape
            if fits and self.plain(chunks.reshape(-1, *shape)):
                return chunks
        return ChunkRule(self.spec, count, self.allow_nonfinite).accept(chunks)

    def _array(self, chunk: object) -> Array:
        # numpy.ma takes milliseconds to import; no masked array exists before
        if "numpy.ma" in sys.modules and isinstance(chunk, np.ma.MaskedArray):
            raise InputError("the chunk is a masked array; fill the masked items first, chunk.filled(0)")
        try:
            return np.asarray(chunk)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the chunk of type {type(chunk).__name__} is no array ({error}); "
                f"pass a numpy array of {self.dtype.name}"
            ) from error

    def _check_shape(self, array: Array) -> None:
        lead = 1 if self.batch is None else 2
        item = self.spec.shape
        fits = array.ndim == lead + len(item) and array.shape[lead:] == item
        if fits and (self.batch is None or array.shape[0] == self.batch):
            return
        names = ["T"] if self.batch is None else [str(self.batch), "T"]
        wanted = "[" + ", ".join([*names, *map(str, item)]) + "]"
        raise InputError(
            f"the chunk has shape {list(array.shape)}, the stream takes {wanted}{self._shape_hint(array)}"
        )

    def _shape_hint(self, array: Array) -> str:
        shape, item = array.shape, self.spec.shape
        if self.batch is None and len(item) == 1 and len(shape) == 2 and shape[0] == item[0]:
            return "; transpose it: chunk.T"
        if self.batch is None and shape[2:] == item and array.ndim == len(item) + 2:
            return f"; for {shape[0]} sequences at once open the stream with batch={shape[0]}"
        if self.batch is not None and shape[1:] == item and array.ndim == len(item) + 1:
            return f"; a stream with batch={self.batch} takes a chunk for every row, with equal T"
        return "; T is the number of items, any number"

    def _typed(self, array: Array) -> Array:
        if array.dtype == self.dtype:
            return array
        if not self._integers:
            raise InputError(f"the chunk is {array.dtype}, the model takes float32; {self._cast_hint(array)}")
        if array.dtype.kind not in "iu":
            raise InputError(
                f"the chunk is {array.dtype}, the model takes integers; convert it: chunk.astype('int64')"
            )
        if array.dtype.kind == "u" and array.size and int(array.max()) > _INT64_MAX:
            raise InputError(f"the chunk holds {int(array.max())}, the largest integer is {_INT64_MAX}")
        return array.astype(np.int64)

    def _cast_hint(self, array: Array) -> str:
        if self.spec.kind == "samples" and array.dtype.kind == "i":
            full = -int(np.iinfo(array.dtype).min)
            return f"scale it to -1..1: chunk.astype('float32') / {full}"
        return "convert it: chunk.astype('float32')"

    def _value_fault(self, array: Array) -> str:
        """What is wrong with the first bad value of ``[T, *shape]`` or ``[batch, T, *shape]``."""
        bad = ~np.isfinite(array) if self._last is None else (array < 0) | (array > self._last)
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f"{array[first]} at index {list(first)} ({int(bad.sum())} such of {array.size} values)"
        if self._last is not None:
            return f"the chunk holds {where}; tokens go from 0 to {self._last}"
        return (
            f"the chunk holds {where}; replace it, or pass it on with allow_nonfinite=True, "
            "on the command line --allow-nonfinite"
        )
