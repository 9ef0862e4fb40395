"""A temporary file for what does not fit into memory: first in, first out, of a bounded size.

The file has no name: it goes with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm import waiting
from streamssm.errors import OutputError

if TYPE_CHECKING:
    from streamssm.live.inbox import Inbox

Array = npt.NDArray[Any]


def spill_folder() -> Path:
    """Where to spill: ``TMPDIR`` if it is set, else a folder that is not in memory, where there is one."""
    durable = Path("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(durable, os.W_OK):
        return durable
    return Path(tempfile.gettempdir())


class SpillFile:
    """A ring of ``limit`` bytes on disk. One thread at a time reserves and frees; places stay valid
    from :meth:`reserve` to :meth:`free`, and are freed in the order in which they were reserved.

    Raises:
        OutputError: the folder is missing or not writable.
    """

    def __init__(self, folder: Path | None, limit: int):
        folder = folder or spill_folder()
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"{folder}: no temporary file there to spill to: {error.strerror}") from error
        self._limit = limit
        self._first = 0  # the place of the oldest byte; places count on and are taken modulo the limit
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes reserved."""
        return self._used

    def reserve(self, size: int) -> int | None:
        """A place for so many bytes, or None while there is no room."""
        if self._used + size > self._limit:
            return None
        place = self._first + self._used
        self._used += size
        return place

    def free(self, size: int) -> None:
        """The oldest ``size`` bytes are no longer needed."""
        self._first += size
        self._used -= size
        if size and not self._used:
            # back to the start, and the disk's room given back
            self._first = 0
            self._file.truncate(0)

    def write(self, place: int, data: memoryview) -> None:
        """Fill a reserved place.

        Raises:
            OSError: the disk is full.
        """
        for at, part in self._parts(place, len(data)):
            rest = data[part]
            while len(rest):
                written = os.pwrite(self._file.fileno(), rest, at)
                at, rest = at + written, rest[written:]

    def read(self, place: int, size: int) -> bytes:
        """What was written to a place.

        Raises:
            OSError: the disk fails.
        """
        parts = [
            os.pread(self._file.fileno(), part.stop - part.start, at) for at, part in self._parts(place, size)
        ]
        data = b"".join(parts)
        if len(data) != size:
            raise OSError(f"{len(data)} of {size} spilled bytes came back")
        return data

    def close(self) -> None:
        """Remove it."""
        self._file.close()

    def _parts(self, place: int, size: int) -> list[tuple[int, slice]]:
        """Offsets in the file, and the parts of the data that belong there: two where the ring closes."""
        at = place % self._limit
        before = min(size, self._limit - at)
        parts = [(at, slice(0, before))]
        return parts if before == size else [*parts, (0, slice(before, size))]


@dataclass(eq=False)
class Chunk:
    """Queued items, in memory or at their place in the file."""

    count: int
    at: float
    items: Array | None
    place: int = -1
    queued: bool = True

    def cut(self, count: int, size: int) -> tuple[Chunk, Chunk]:
        """The first items, of ``size`` bytes each, and the rest."""
        first = Chunk(count, self.at, None, self.place, queued=False)
        rest = Chunk(self.count - count, self.at, None, self.place + count * size)
        if self.items is not None:
            first.items, rest.items = self.items[:count], self.items[count:]
        return first, rest


class Spiller:
    """Moves the chunks of an inbox that are beyond its capacity to disk, in a thread of its own: who puts
    does not wait for a disk. All but the writing and ``close`` happens under the inbox's lock."""

    def __init__(self, inbox: Inbox, folder: Path | None, limit: int):
        self._inbox = inbox
        self._file = SpillFile(folder, limit)
        self._offered: deque[Chunk] = deque()  # in the order of the queue, so the file is first in, first out
        self._writing = 0  # items of the chunk that is being written
        self._held = self._freed = 0  # items that the reader still reads; items after them to be freed
        self._thread = waiting.started("streamssm-spill", self._run)

    @property
    def idle(self) -> bool:
        """Whether no room in memory is about to be won."""
        return self._writing == 0 and not self._offered

    def offer(self, chunk: Chunk) -> None:
        """A chunk that does not fit into memory."""
        if self._inbox.failure is None:
            self._offered.append(chunk)

    def hold(self, count: int) -> None:
        """The reader takes the first items in the file: their place is not free before :meth:`read`."""
        self._held += count

    def read(self, chunk: Chunk) -> Array:
        """The items of a chunk that the reader has taken; not under the lock."""
        empty, size = self._inbox.empty, self._inbox.item_bytes
        data = bytearray(self._file.read(chunk.place, chunk.count * size))
        with self._inbox.changed:
            self._held -= chunk.count
            self._freed += chunk.count
            self._free()
        return np.frombuffer(data, empty.dtype).reshape(chunk.count, *empty.shape[1:])

    def free(self, count: int) -> None:
        """The first items in the file are no longer needed."""
        self._freed += count
        self._free()

    def _free(self) -> None:
        # the file is freed in order, and what the reader holds comes first
        if not self._held:
            freed, self._freed = self._freed, 0
            self._file.free(freed * self._inbox.item_bytes)

    def close(self) -> None:
        """Remove the file; the inbox is closed."""
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        changed = self._inbox.changed
        while True:
            with changed:
                chunk = self._next()
                if chunk is None:
                    return
                items = chunk.items
            try:
                self._file.write(chunk.place, memoryview(items).cast("B"))  # type: ignore[arg-type]
            except OSError as error:
                with changed:
                    self._give_up(error)
                return
            with changed:
                self._written(chunk)

    def _next(self) -> Chunk | None:
        """The next chunk to write, with a place; None when the inbox is closed."""
        inbox = self._inbox
        while True:
            inbox.changed.wait_for(lambda: inbox.closed or self._offered)
            if inbox.closed:
                return None
            chunk = self._offered.popleft()
            # meanwhile it may have been read, or room may have come for it in memory
            if chunk.queued and inbox.memory > inbox.capacity:
                place = self._file.reserve(chunk.count * inbox.item_bytes)
                if place is not None:
                    chunk.place, self._writing = place, chunk.count
                    return chunk
            inbox.changed.notify_all()

    def _written(self, chunk: Chunk) -> None:
        count, self._writing = self._writing, 0
        if chunk.queued:
            chunk.items = None
            self._inbox.memory -= count
            self._inbox.spilled += count
        else:
            self.free(count)  # it was read, or dropped, while it was written
        self._inbox.changed.notify_all()

    def _give_up(self, error: OSError) -> None:
        """Spill nothing more; what is on disk is still read."""
        self._inbox.failure = f"nothing more is spilled: {error.strerror or error}"
        self._writing = 0
        self._offered.clear()
        self._inbox.changed.notify_all()
