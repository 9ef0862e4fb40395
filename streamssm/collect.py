"""What the calls of a pool's step give, by key or by rows; and keys that come together again and again."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streamssm.slot import Cut, Table, index_of
from streamssm.stream import Result

Array = npt.NDArray[Any]
Key = Hashable

_SMALL = 1 << 14  # bytes of an output that are kept in one piece of memory


class Rows(NamedTuple):
    """Streams that a step gave equally many frames."""

    keys: tuple[Key, ...]
    outputs: Result
    """``[n, frames, *shape]``, a row a stream; by name where the model has several outputs."""


class Take(Protocol):
    """What is given the outputs of a call, part by part, and copies them."""

    def __call__(self, rows: Array, places: Array, cut: Cut, outputs: tuple[Array, ...]) -> None:
        """Of the streams in these rows of the pool, these frames of ``outputs [places, frames, *shape]``."""

    def settle(self) -> None:
        """A further call follows, which may write where the outputs are."""


class ByKey:
    """One result after the other."""

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        self.found: list[tuple[Key, Result]] = []
        self._table, self._names = table, names

    def __call__(self, rows: Array, places: Array, cut: Cut, outputs: tuple[Array, ...]) -> None:
        """See :class:`Take`."""
        keys = self._table.keys[rows].tolist()
        parts = [_apart(y, places, *part) for y, part in zip(outputs, cut, strict=True)]
        if len(parts) == 1:
            self.found.extend(zip(keys, parts[0], strict=True))
        else:
            for key, *some in zip(keys, *parts, strict=True):
                self.found.append((key, dict(zip(self._names, some, strict=True))))

    def settle(self) -> None:
        """See :class:`Take`; all were copied."""


class ByRows:
    """Results of equally many frames together; without ``copy`` those of the last call are not copied."""

    def __init__(self, table: Table, names: Sequence[str], copy: bool) -> None:
        self._found: dict[tuple[int, ...], list[list[Array]]] = {}
        self._table, self._names, self._copy = table, names, copy
        self._uncopied: list[list[Array]] = []

    def __call__(self, rows: Array, places: Array, cut: Cut, outputs: tuple[Array, ...]) -> None:
        """See :class:`Take`."""
        at = index_of(places)
        parts = [y[at, first:last] for y, (first, last) in zip(outputs, cut, strict=True)]
        found = [rows, self._table.keys[rows], *parts]
        counts = tuple(last - first for first, last in cut)
        self._found.setdefault(counts, []).append(found)
        self._uncopied.append(found)
        if self._copy:
            self.settle()

    def settle(self) -> None:
        """See :class:`Take`."""
        for found in self._uncopied:
            found[2:] = [part.copy() if part.base is not None else part for part in found[2:]]
        self._uncopied.clear()

    def joined(self) -> Iterator[tuple[Array, Array, Result]]:
        """Rows, keys and outputs of all that have equally many frames."""
        for found in self._found.values():
            rows, keys, *parts = (
                part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*found, strict=True)
            )
            yield rows, keys, parts[0] if len(parts) == 1 else dict(zip(self._names, parts, strict=True))


class Names:
    """The keys of groups of streams and their rows, as long as no stream comes or goes.

    A tuple or a range cannot change, so the same one stands for the same streams.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A stream has come or gone."""
        none = np.zeros(0, np.intp)
        self._given: tuple[object, Array] = (None, none)
        self._made: tuple[tuple[Key, ...], Array] = ((), none)

    def rows(self, keys: Sequence[Key]) -> Array | None:
        """The rows of these keys, if they are known."""
        return next((rows for known, rows in (self._given, self._made) if keys is known), None)

    def note(self, keys: Sequence[Key], rows: Array) -> None:
        """Keys and their rows, all different."""
        if type(keys) in (tuple, range):
            self._given = keys, rows

    def keys(self, rows: Array, keys: Array) -> tuple[Key, ...]:
        """Keys as a tuple, the same one as long as the rows are the same."""
        if not np.array_equal(self._made[1], rows):
            self._made = tuple(keys.tolist()), rows
        return self._made[0]


def _apart(y: Array, rows: Array, first: int, last: int) -> list[Array]:
    """A copy of these frames of every row. Small ones share a piece of memory, which is cheaper; a large
    one must not be kept by another."""
    each = max(1, _SMALL // max(1, (last - first) * (y[0, :1].nbytes if len(y) else 0)))
    found: list[Array] = []
    for start in range(0, len(rows), each):
        found.extend(np.array(y[index_of(rows[start : start + each]), first:last]))
    return found
