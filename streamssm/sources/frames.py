"""What sources of audio share: frames of a file or a pipe through a converter."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from streamssm.errors import SourceError
from streamssm.sources.base import Array, Source
from streamssm.sources.convert import Converter
from streamssm.waiting import Interrupted


class FrameSource(Source):
    """Items of frames, which a subclass reads. What is damaged is told after all items before it.

    ``allow_truncated`` turns an end before the announced one into a note.
    """

    def __init__(self, name: str, converter: Converter, allow_truncated: bool = False):
        self.name = name
        self.notes = self._notes = list(converter.notes)
        self._converter = converter
        self._allow_truncated = allow_truncated
        self._ready: list[Array] = []
        self._ended = False
        self._damage: SourceError | None = None

    @abstractmethod
    def _frames(self, count: int) -> Array:
        """The next frames ``[n, channels]`` as float32, about ``count``; none at the end.

        Raises:
            SourceError: the data are damaged; all frames before were given.
        """

    def read(self, count: int) -> Array:
        """The next items; an end before the announced one is damage."""
        while not self._ready and not self._ended:
            try:
                self._fetch(self._converter.needed(count))
            except Interrupted:
                return self._settled()
        if self._ready:
            items = self._ready.pop(0)
            if len(items) > count:
                self._ready.insert(0, items[count:])
            return items[:count]
        if self._damage is not None:
            raise self._damage
        return self._converter.flush()  # of nothing: no items, in the model's shape

    def skip(self, count: int) -> None:
        """Leave out the next items; without reading them, where every frame is one."""
        if self._converter.one_to_one and not self._ready and not self._ended:
            count -= self._leap(count)
        super().skip(count)

    def note(self, text: str) -> None:
        """Tell the user something."""
        self._notes.append(text)

    def _leap(self, count: int) -> int:
        """Leave out at most ``count`` frames without reading them; how many were left out."""
        return 0

    def _settled(self) -> Array:
        """All that a request to stop leaves of a pipe: it cannot be read again."""
        tail = self._converter.flush()
        if self.replayable or not len(tail):
            raise Interrupted
        self._ended = True
        return tail

    def _fetch(self, frames: int) -> None:
        try:
            data = self._frames(frames)
        except SourceError as error:
            data, self._damage = np.zeros(0), error
        items = self._converter.push(data) if len(data) else self._converter.flush()
        self._ended = not len(data)
        if len(items):
            self._ready.append(items)

    def _truncated(self, message: str, remedy: str) -> None:
        """The recording ends too early: damage, unless that was allowed.

        Raises:
            SourceError: with the message and the remedy.
        """
        if not self._allow_truncated:
            raise SourceError(f"{message}; {remedy}, or take what is there with --allow-truncated")
        self.note(f"{message}; taken as it is")
