"""The instructions that ``streamssm.native::Fused`` runs: the other side of kernels/cpu/program.h.

An :class:`Assembler` takes the operations of a stretch of a graph one after the other, gives their
values places in buffers, and packs the parameters. A value is a row of floats for every item; a
view of a value (a part of its columns) costs nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamssm.native.pack import aligned_floats

Array = npt.NDArray[Any]

_ALIGNMENT = 16  # floats
_LARGE = 1 << 20  # bytes

#: makes an array of packed parameters, at once or in consecutive parts
Pack = Callable[[], Array | Iterable[Array]]


class Code(enum.IntEnum):
    """Instructions; see ``Code`` in program.h for their arguments."""

    INPUT = 0
    OUTPUT = 1
    LINEAR = 2
    RMS_NORM = 3
    CONV = 4
    SCAN = 5
    DUAL = 6
    UNARY = 7
    BINARY = 8
    CONSTANT = 9
    UNFOLD = 10


class Function(enum.IntEnum):
    """Functions of one or two rows; see ``Function`` in program.h."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3
    MAXIMUM = 4
    MINIMUM = 5
    GATE = 6
    SIGMOID = 16
    SILU = 17
    SOFTPLUS = 18
    EXP = 19
    TANH = 20
    RELU = 21
    COPY = 22


@dataclass(frozen=True)
class View:
    """Columns of a buffer from ``offset`` on."""

    buffer: int
    offset: int


class Assembler:
    """Builds one program.

    ``uses`` says how often each value is still read; a buffer is free for others once nothing
    reads any view of it.
    """

    def __init__(self, uses: Mapping[str, int]) -> None:
        self._uses = dict(uses)
        self._views: dict[str, View] = {}
        self._readers: dict[int, int] = {}  # of each buffer in use
        self._free: list[int] = []
        self._buffers: list[int] = []
        self._sizes: dict[str, list[int]] = {"inputs": [], "outputs": [], "states": []}
        self._code: list[int] = []
        self._places: dict[object, int] = {}
        self._packers: list[tuple[int, Pack]] = []
        self._weights = 0

    # Values.

    def define(self, name: str, width: int) -> View:
        """A buffer for a new value, padded to whole panels."""
        width = -(-width // _ALIGNMENT) * _ALIGNMENT
        fitting = [buffer for buffer in self._free if self._buffers[buffer] >= width]
        if fitting:
            buffer = min(fitting, key=lambda index: self._buffers[index])
            self._free.remove(buffer)
        else:
            buffer = len(self._buffers)
            self._buffers.append(width)
        self._views[name] = View(buffer, 0)
        self._readers[buffer] = self._uses.get(name, 0)
        return self._views[name]

    def alias(self, name: str, source: str, offset: int = 0) -> None:
        """``name`` is a part of the columns of ``source``; takes the place of one use of it."""
        view = self._views[source]
        self._views[name] = View(view.buffer, view.offset + offset)
        self._readers[view.buffer] += self._uses.get(name, 0)

    def read(self, name: str) -> list[int]:
        """A value as two arguments."""
        view = self._views[name]
        return [view.buffer, view.offset]

    def release(self, names: Iterable[str]) -> None:
        """These values were read once each."""
        for name in names:
            buffer = self._views[name].buffer
            self._readers[buffer] -= 1
            if self._readers[buffer] == 0:
                self._free.append(buffer)

    # Parameters.

    def weights(self, key: object, floats: int, pack: Pack) -> int:
        """The place of ``floats`` packed parameters; those with one key are stored once."""
        if key not in self._places:
            self._places[key] = self._weights
            self._packers.append((self._weights, pack))
            self._weights += -(-floats // _ALIGNMENT) * _ALIGNMENT
        return self._places[key]

    def vector(self, key: object, values: Array, width: int) -> int:
        """The place of a row of parameters, with one vector of slack after it."""
        padded = -(-width // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT

        def pack() -> Array:
            row = np.zeros(padded, np.float32)
            row[:width] = values.reshape(-1)
            return row

        return self.weights((key, width), padded, pack)

    # Instructions.

    def port(self, kind: str, size: int) -> int:
        """The number of a further input, output or state of this size."""
        self._sizes[kind].append(size)
        return len(self._sizes[kind]) - 1

    def emit(self, code: Code, *arguments: int) -> None:
        """Append an instruction."""
        self._code += [int(code), len(arguments), *(int(argument) for argument in arguments)]

    def words(self) -> list[int]:
        """The program as the native side decodes it."""
        lists = [self._buffers, self._sizes["inputs"], self._sizes["outputs"], self._sizes["states"]]
        return [*(len(part) for part in lists), *(size for part in lists for size in part), *self._code]

    def packed(self, release: Callable[[], None] = lambda: None) -> Array:
        """All parameters, one float32 array that starts at a multiple of 64 bytes. ``release`` is
        called when what they were read from is no longer needed in memory."""
        total = aligned_floats(max(self._weights, _ALIGNMENT))
        for place, pack in self._packers:
            made = pack()
            for part in (made,) if isinstance(made, np.ndarray) else made:
                total[place : place + part.size] = part.reshape(-1)
                place += part.size
                if part.nbytes >= _LARGE:
                    release()
        return total


def float_bits(value: float) -> int:
    """A float32 as the integer of the same bits."""
    return int(np.float32(value).view(np.int32))
