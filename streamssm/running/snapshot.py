"""What a snapshot of a run holds beside the stream, and saving it every so often.

The order is what makes a run that was killed go on exactly: what was written is on the disk before the
snapshot that counts it is, and the snapshot replaces the one before in one step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamssm import waiting
from streamssm.atomic import write_bytes
from streamssm.errors import SnapshotError
from streamssm.rows.base import Rows
from streamssm.running.loop import Loop
from streamssm.running.place import Origin, SavedSource
from streamssm.stream import Stream

KEY = "streamssm.run"


class SavedOutput(msgspec.Struct, frozen=True):
    """The output that rows were written to: its bytes, and its path unless it was standard output."""

    length: int
    path: str | None = None
    real: str | None = None


class SavedRun(msgspec.Struct):
    """Everything but the stream. ``text`` is what the encoder held, ``text_start`` what it held at the
    beginning of the source, ``last`` the last row of features as hexadecimal bytes, ``passed`` how many items
    of gaps the clock has passed over."""

    emit: str
    rows: dict[str, Any]
    text: dict[str, Any] | None = None
    text_start: dict[str, Any] | None = None
    last: str = ""
    passed: int = 0
    format: dict[str, Any] | None = None
    output: SavedOutput | None = None
    source: SavedSource | None = None


def read_saved(stream: Stream, path: Path, rows: Rows) -> SavedRun:
    """What was saved with a stream, checked against the rows of this run.

    Raises:
        SnapshotError: it was not saved by a run, or with other rows.
    """
    text = stream.extra.get(KEY)
    if text is None:
        raise SnapshotError(
            f"{path} was saved by a program, not by 'streamssm run --save-state'; it lacks the position of "
            "the output: resume it with model.resume()"
        )
    try:
        saved = msgspec.json.decode(text, type=SavedRun)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"{path} was saved by another version: {error}; start anew") from error
    if saved.emit != type(rows).__name__:
        raise SnapshotError(f"{path} was saved with another --emit; use the same one")
    return saved


class Snapshots:
    """Takes snapshots of a run. ``written`` says what was written so far: the format's state and the output;
    it is asked under the loop's lock."""

    def __init__(
        self,
        loop: Loop,
        origin: Origin,
        written: Callable[[], tuple[dict[str, Any] | None, SavedOutput | None]],
    ):
        self._loop, self._origin, self._written = loop, origin, written

    def take(self) -> bytes:
        """The snapshot of this moment; the caller holds the lock, if there is another thread."""
        loop = self._loop
        form, output = self._written()
        saved = SavedRun(
            emit=type(loop.rows).__name__,
            rows=loop.rows.state(),
            text=None if loop.encoder is None else loop.encoder.state(),
            text_start=self._origin.text,
            last="" if loop.last is None else loop.last.tobytes().hex(),
            passed=loop.passed,
            format=form,
            output=output,
            source=self._origin.save(loop.place),
        )
        return loop.stream.snapshot({KEY: msgspec.json.encode(saved).decode()})

    def restore(self, saved: SavedRun) -> None:
        """Go on with what fills gaps; rows, text and format are restored by who made them."""
        spec = self._loop.stream.model.manifest.input
        self._loop.passed = saved.passed
        if saved.last:
            self._loop.last = np.frombuffer(bytes.fromhex(saved.last), spec.dtype).reshape(spec.shape)


class Saver:
    """Saves a run now, and while it is started every ``seconds`` if anything has changed.

    It saves in a thread of its own, also while the run waits for input; the run itself waits no longer than
    it takes to copy the state. An error there stops the run, and is raised by :meth:`stop`.
    """

    def __init__(self, path: Path, snapshots: Snapshots, sync: Callable[[], None], loop: Loop):
        self._path, self._snapshots, self._sync, self._loop = path, snapshots, sync, loop
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, data: bytes) -> None:
        """Write a snapshot, after what it counts.

        Raises:
            OutputError: the disk is full, or the like.
        """
        self._sync()
        write_bytes(self._path, data, temporary=_TEMPORARY)
        self._loop.report.saves += 1

    def start(self, seconds: float) -> None:
        """Save every so often from now on."""
        self._thread = waiting.started("streamssm-save", lambda: self._run(seconds))

    def stop(self) -> None:
        """Save no more; a save that has begun is finished.

        Raises:
            OutputError: a snapshot could not be saved.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Save no more, whatever happened; nothing is raised."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def _run(self, seconds: float) -> None:
        done: int | None = None
        try:
            while not self._over.wait(seconds):
                with self._loop.lock:
                    if not self._loop.whole:
                        return
                    changes = self._loop.changes
                    data = self._snapshots.take() if changes != done else None
                if data is not None:
                    self.save(data)
                    done = changes
        except Exception as error:
            self._error = error
            self._loop.stop.request()


_PATIENCE = 10.0  # seconds
_TEMPORARY = "saving"  # one name, so that runs that are killed leave one file at most
