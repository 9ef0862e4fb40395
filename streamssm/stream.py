"""One live sequence: re-chunks what is pushed into blocks and remembers the rest.

The backend always sees whole blocks, cut at the same items however the input was split;
only :meth:`Stream.flush` runs a shorter last call. So at one block size every split of the
input gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm.chunks import ChunkRule
from streamssm.errors import StreamEndedError, StreamTornError
from streamssm.frames import frame_rules

if TYPE_CHECKING:
    from streamssm.model import Model

Array = npt.NDArray[Any]
Result = Array | dict[str, Array]


@dataclass(frozen=True)
class StreamState:
    """All that a stream remembers. ``states`` are ``[batch, *shape]`` in the manifest's
    order, ``pending`` is ``[batch, items, *item_shape]``; batch is 1 for a stream without."""

    states: tuple[Array, ...]
    pending: Array
    position: int
    ended: bool


class Stream:
    """A stream of one model, made by :meth:`Model.stream` or :meth:`Model.resume`.

    A stream belongs to one thread at a time and takes no locks; different streams of one
    model may run in different threads. A call that raises leaves the stream as it was, but for
    one case: a stream opened with ``in_place`` that a signal (KeyboardInterrupt) cuts short in the
    middle of a step refuses to go on until :meth:`reset` or :meth:`restore`.

    Without a batch a chunk is ``[T, *item_shape]`` and a result ``[F, *output_shape]``;
    with ``batch=n`` both get a leading axis of n. A model with one output returns the
    array, a model with several a dict from output name to array. Results are the
    caller's own: the stream keeps no reference to them.
    """

    __slots__ = (
        "_backlog",
        "_batch",
        "_block",
        "_chunk_shape",
        "_ended",
        "_extra",
        "_fill",
        "_find_mark",
        "_frames",
        "_in_place",
        "_input",
        "_lane",
        "_mark",
        "_model",
        "_outputs",
        "_position",
        "_ready",
        "_rule",
    )

    def __init__(
        self,
        model: Model,
        block: int,
        batch: int | None,
        allow_nonfinite: bool,
        extra: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> None:
        """Use :meth:`Model.stream`, which checks the arguments."""
        self._model, self._block, self._batch = model, block, batch
        self._extra = dict(extra or {})
        self._rule = ChunkRule(model.manifest.input, batch, allow_nonfinite)
        self._frames = frame_rules(model.manifest)
        self._lane = lane = model.backend.lane(block, batch or 1, in_place)
        self._in_place = in_place
        # views of the lane's buffers in the shapes that the caller sees
        self._input = lane.x[0] if batch is None else lane.x
        self._mark, marks = self._rule.watch(lane.x)
        self._find_mark = marks.find
        self._outputs = tuple(y[0] if batch is None else y for y in lane.y)
        self._chunk_shape = self._input.shape
        self._position = 0
        self._fill = 0  # items waiting in the lane's input buffer, less than a block
        self._backlog: Array | None = None  # items of a stream resumed at a smaller block
        self._ended = False
        self._ready = self._is_ready()

    @property
    def model(self) -> Model:
        """The model that this stream runs."""
        return self._model

    @property
    def position(self) -> int:
        """Input items accepted since the start; the next item to read has this index."""
        return self._position

    @property
    def pending(self) -> int:
        """Items accepted but not yet run, because they do not fill a block."""
        return self._fill + (0 if self._backlog is None else int(self._backlog.shape[1]))

    @property
    def block(self) -> int:
        """Input items per backend call."""
        return self._block

    @property
    def batch(self) -> int | None:
        """Rows that run in step, or None for a single sequence without a batch axis."""
        return self._batch

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self._ended

    @property
    def extra(self) -> dict[str, str]:
        """What the caller put into the snapshot that this stream was resumed from."""
        return dict(self._extra)

    def __repr__(self) -> str:
        """Model, position and pending items; seconds where the input has a rate."""
        seconds = self._model.duration(self._position)
        clock = "" if seconds is None else f" ({seconds:.3f} s)"
        batch = "" if self._batch is None else f", batch {self._batch}"
        state = "ended" if self._ended else f"{self.pending} pending"
        name = self._model.manifest.name
        return f"<Stream of {name}: item {self._position}{clock}, {state}, block {self._block}{batch}>"

    def push(self, chunk: Array) -> Result:
        """Give the stream more input, of any length; returns what became known by it.

        Raises:
            InputError: the chunk does not fit the model; nothing of it was used.
            StreamEndedError: the stream was flushed; call :meth:`reset` first.
            BackendError: the run failed.
        """
        # One whole block on a block's edge: no bookkeeping. What is unusual in the chunk
        # itself goes the long way, which also words the error.
        if (
            self._ready
            and type(chunk) is np.ndarray
            and chunk.shape == self._chunk_shape
            and chunk.dtype is self._rule.dtype
        ):
            self._input[...] = chunk
            self._mark()
            if self._find_mark(0) < 0:
                self._require_whole()
                self._lane.step()
                self._position += self._block
                outputs = self._outputs
                return outputs[0].copy() if len(outputs) == 1 else self._named([y.copy() for y in outputs])
        return self._push(chunk)

    def flush(self) -> Result:
        """End the stream: run the pending items and release the look-ahead.

        The pending items are padded with zeros, nucleotides with N; results that stem from padding alone are
        not returned, so that N items give ``ceil(N * ratio)`` results in total. Flushing
        an ended stream returns no results.

        Raises:
            BackendError: the run failed; the stream was not ended.
        """
        if self._ended or not self._position:
            self._ended, self._ready = True, False
            return self._present(self._blank([0] * len(self._frames)))
        spec, position, pending = self._model.manifest.input, self._position, self.pending
        processed = position - pending
        results = self._blank([rule.total(position) - rule.returned(processed) for rule in self._frames])
        tail = -(-(pending + self._model.manifest.lookahead) // spec.hop) * spec.hop
        shape = (len(self._lane.x), tail - pending, *self._lane.x.shape[2:])
        padding = np.full(shape, spec.filler, self._rule.dtype)
        before = self.state()
        try:
            cursors = self._run(padding, results)
            if self._fill:
                self._collect(results, self._lane.step_short(self._fill), cursors)
        except BaseException:
            self.restore(before)
            raise
        self._position, self._fill, self._ended, self._ready = position, 0, True, False
        return self._present(results)

    def reset(self) -> None:
        """Forget everything: the stream is as new, at item 0."""
        for state in self._lane.state:
            state[...] = 0
        self._lane.torn = False
        self._position, self._fill, self._backlog, self._ended = 0, 0, None, False
        self._ready = self._is_ready()

    def fork(self) -> Stream:
        """An independent stream that continues from here."""
        allow = self._rule.allow_nonfinite
        twin = Stream(self._model, self._block, self._batch, allow, in_place=self._in_place)
        twin.restore(self.state())
        return twin

    # copying attribute by attribute would share the buffers
    def __copy__(self) -> Stream:
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self.fork()

    def snapshot(self, extra: Mapping[str, str] | None = None) -> bytes:
        """The stream as bytes; :meth:`Model.resume` continues from them.

        Equal streams give equal bytes. ``extra`` is text of the caller's own that belongs
        to this moment; the resumed stream has it in :attr:`extra`.
        """
        from streamssm.snapshot import Snapshot, encode

        allow = self._rule.allow_nonfinite
        saved = Snapshot(self.state(), self._block, self._batch, allow, dict(extra or {}))
        return encode(self._model, saved)

    def save(self, path: str | os.PathLike[str], extra: Mapping[str, str] | None = None) -> None:
        """Write :meth:`snapshot` to a file, as a whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        from streamssm.atomic import write_bytes

        write_bytes(path, self.snapshot(extra))

    def state(self) -> StreamState:
        """A copy of all that the stream remembers.

        Raises:
            StreamTornError: a signal cut a step in place short.
        """
        self._require_whole()
        waiting = self._lane.x[:, : self._fill]
        pending = waiting if self._backlog is None else self._backlog
        states = tuple(state.copy() for state in self._lane.state)
        return StreamState(states, pending.copy(), self._position, self._ended)

    def restore(self, state: StreamState) -> None:
        """Continue from a state of a stream of the same model and batch."""
        for target, source in zip(self._lane.state, state.states, strict=True):
            target[...] = source
        self._lane.torn = False
        items = state.pending.shape[1]
        if items < self._block:
            self._lane.x[:, :items] = state.pending
            self._fill, self._backlog = items, None
        else:
            self._fill, self._backlog = 0, state.pending.copy()
        self._position, self._ended = state.position, state.ended
        self._ready = self._is_ready()

    # The long way.

    def _require_whole(self) -> None:
        if self._lane.torn:
            raise StreamTornError(
                f"a signal cut the step at item {self._position} short, and the state was being overwritten; "
                "call reset(), or restore() what you saved"
            )

    def _is_ready(self) -> bool:
        """On a block's edge, past the warm-up, not ended."""
        edge = not self._fill and self._backlog is None and not self._ended
        return edge and all(not rule.cursor(self._position) for rule in self._frames)

    def _push(self, chunk: object) -> Result:
        if self._ended:
            raise StreamEndedError(f"the stream ended at item {self._position}; call reset() to start anew")
        self._require_whole()
        x = self._rule.accept(chunk)
        items, pending = x.shape[1], self.pending
        calls = (pending + items) // self._block
        start = self._position - pending
        stop = start + calls * self._block
        results = self._blank([rule.returned(stop) - rule.returned(start) for rule in self._frames])
        # one call fails as a whole; of several, the first may be done when the second fails
        before = self.state() if calls > 1 else None
        try:
            self._run(x, results)
        except BaseException:
            if before is not None:
                self.restore(before)
            raise
        self._position += items
        self._ready = self._is_ready()
        return self._present(results)

    def _run(self, x: Array, results: list[Array]) -> list[int]:
        """Run every block that ``x [batch, T, ...]`` completes and keep the rest; returns
        where the next frame of each output belongs."""
        cursors = [rule.cursor(self._position - self.pending) for rule in self._frames]
        if self._backlog is not None:
            x = np.concatenate([self._backlog, x], axis=1)
        lane, block, fill, at = self._lane, self._block, self._fill, 0
        while fill + x.shape[1] - at >= block:
            taken = block - fill
            lane.x[:, fill:] = x[:, at : at + taken]
            lane.step()
            self._collect(results, lane.y, cursors)
            at, fill = at + taken, 0
        rest = x.shape[1] - at
        lane.x[:, fill : fill + rest] = x[:, at:]
        self._fill, self._backlog = fill + rest, None
        return cursors

    def _collect(self, results: list[Array], frames: tuple[Array, ...], cursors: list[int]) -> None:
        """Append ``frames`` to ``results`` at the cursors, cut to what is wanted."""
        for index, (result, y) in enumerate(zip(results, frames, strict=True)):
            out = result[None] if self._batch is None else result
            at = cursors[index]
            start, stop = max(at, 0), min(at + y.shape[1], out.shape[1])
            if start < stop:
                out[:, start:stop] = y[:, start - at : stop - at]
            cursors[index] = at + y.shape[1]

    def _blank(self, frames: list[int]) -> list[Array]:
        """Arrays for the results, in the caller's shapes."""
        lead = () if self._batch is None else (self._batch,)
        outputs = self._model.manifest.outputs
        return [
            np.empty((*lead, count, *output.shape), np.float32)
            for output, count in zip(outputs, frames, strict=True)
        ]

    def _present(self, results: list[Array]) -> Result:
        return results[0] if len(results) == 1 else self._named(results)

    def _named(self, results: list[Array]) -> dict[str, Array]:
        outputs = self._model.manifest.outputs
        return {output.name: result for output, result in zip(outputs, results, strict=True)}
