"""What a client is shown of a stream's outputs: rows, and levels. Both have a place that snapshots carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamssm.errors import SnapshotError
from streamssm.outputs import by_name
from streamssm.rows import make_rows
from streamssm.serving.wire import Asked, Intake, Message

if TYPE_CHECKING:
    from streamssm.manifest import Manifest
    from streamssm.model import Model
    from streamssm.outputs import Array
    from streamssm.rows import Rows
    from streamssm.stream import Result

_LEVEL_DIGITS = 4


def emits(model: Model, asked: Asked) -> str:
    """What a stream sends, after a trial whether the model can do what is asked for.

    Raises:
        StreamSSMError: it cannot.
    """
    emit = asked.emit or ("events" if model.manifest.events is not None else "items")
    Intake(model.manifest.input, asked)
    if emit != "none":
        make_rows(model.manifest, emit)
    return emit


class Shown:
    """Results to messages, from the first item of a sequence on; ``emit`` is of :func:`emits`."""

    def __init__(self, manifest: Manifest, emit: str):
        self.frames = 0  #: of the output that levels are made of, so far
        self._manifest, self._emit = manifest, emit
        self._rows: Rows | None = None if emit == "none" else make_rows(manifest, emit)
        self._level = manifest.outputs[0].name if manifest.events is None else manifest.events.output

    def use(self, result: Result, rows: list[Message]) -> Array:
        """Append the rows of a result; returns the output that levels are made of."""
        outputs = by_name(self._manifest, result)
        if self._rows is not None:
            rows += self._rows.push(outputs)
        self.frames += len(outputs[self._level])
        return outputs[self._level]

    def flush(self) -> list[Message]:
        """The rows that the end of the sequence makes known."""
        return [] if self._rows is None else self._rows.flush()

    def levels(self, values: Array, start: int) -> Message:
        """The output as short numbers, for showing; ``start`` is the number of the first frame."""
        rows = values.reshape(len(values), -1).tolist()
        short = [[round(value, _LEVEL_DIGITS) for value in row] for row in rows]
        shown = [row[0] for row in short] if len(short[0]) == 1 else short
        return {"type": "levels", "output": self._level, "start": start, "values": shown}

    def place(self) -> str:
        """Where it stands, for :meth:`resumed`."""
        rows = None if self._rows is None else self._rows.state()
        extra = {"emit": self._emit, "rows": rows, "frames": self.frames}
        return msgspec.json.encode(extra).decode()

    @classmethod
    def resumed(cls, manifest: Manifest, emit: str, place: str | None) -> Shown:
        """One that goes on where the saved one stopped.

        Raises:
            SnapshotError: it cannot.
        """
        try:
            extra = msgspec.json.decode(place or "{}")
            if extra.get("emit") != emit:
                raise SnapshotError(
                    f"the snapshot was saved with emit={extra.get('emit')}, this stream has emit={emit}"
                )
            shown = cls(manifest, emit)
            if shown._rows is not None:
                shown._rows.restore(extra["rows"])
            shown.frames = int(extra["frames"])
            return shown
        except SnapshotError:
            raise
        except Exception as error:  # anything may be in there
            raise SnapshotError("the snapshot was not saved by a server: take one with 'snapshot'") from error
