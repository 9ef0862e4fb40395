"""An opened model file."""

from __future__ import annotations

import operator
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm import snapshot
from streamssm.backends import Backend, open_backend, resolve
from streamssm.errors import InputError, ModelFileError, UsageError
from streamssm.manifest import Manifest
from streamssm.onnx_file import ModelFile, read_model_file
from streamssm.stream import Result, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from streamssm.aio import AsyncPool, AsyncStream
    from streamssm.live.queue import Queue
    from streamssm.pool import Pool
    from streamssm.running import Run
    from streamssm.sources import Source

Array = npt.NDArray[Any]

_BUILT_IN = Path(__file__).parent / "models"


def load(name_or_path: str | os.PathLike[str], backend: str = "auto", precision: str = "float32") -> Model:
    """Open a model.

    ``name_or_path`` is the name of a built-in model (a string without a suffix and without
    a folder, such as ``"vad"``) or the path of an ``.onnx`` file or of an engine folder. ``backend`` is
    ``"cpu"``, ``"cuda"``, ``"tensorrt"`` (for engines) or ``"auto"``: a GPU for a large model where one can
    be used, else the processor. ``precision`` is for
    ``"cuda"``: ``"float16"`` or ``"bfloat16"`` rounds the matrices of Mamba and Mamba-2 blocks, and what
    passes between them, which is several times faster; states and sums stay float32.

    Raises:
        UsageError: there is no such backend or precision.
        ModelFileError: the file is missing, damaged, or no streamssm model; its
            subclasses :class:`ManifestError` and :class:`IntegrityError` say which part.
        BackendError: the backend is not installed or cannot run the model.
    """
    backend = resolve(backend)
    file = read_file(find(name_or_path))
    return Model(file, open_backend(backend, file, precision))


def read_file(path: Path) -> ModelFile:
    """What a model file says, or an engine folder.

    Raises:
        ModelFileError: as of :func:`load`.
    """
    if path.is_dir():
        from streamssm.tensorrt.opening import read_engine

        return read_engine(path)
    return read_model_file(path)


def built_in_models() -> list[str]:
    """The names that :func:`load` knows."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.onnx"))


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The path that a built-in name or a path stands for.

    Raises:
        ModelFileError: there is no built-in model of this name.
    """
    path = Path(name_or_path)
    if not isinstance(name_or_path, str) or path.suffix or path.name != name_or_path:
        return path
    names = built_in_models()
    if name_or_path not in names and path.is_dir():
        return path  # an engine folder, whose name needs no suffix
    if name_or_path not in names:
        known = ", ".join(names) or "none in this installation"
        raise ModelFileError(
            f"there is no built-in model {name_or_path!r} (built in: {known}); "
            f"for a file give its path, with the suffix: {name_or_path}.onnx"
        )
    return _BUILT_IN / f"{name_or_path}.onnx"


class Model:
    """An opened model: immutable, shared by any number of streams and threads.

    Made by :func:`streamssm.load`.
    """

    __slots__ = ("_backend", "_file")

    def __init__(self, file: ModelFile, backend: Backend) -> None:
        self._file, self._backend = file, backend

    @property
    def manifest(self) -> Manifest:
        """What the file says about itself."""
        return self._file.manifest

    @property
    def path(self) -> Path:
        """The file it was opened from."""
        return self._file.path

    @property
    def sha256(self) -> str:
        """The identity of the file; snapshots record it."""
        return self._file.manifest.sha256

    @property
    def file(self) -> ModelFile:
        """What was read from the file without running it."""
        return self._file

    @property
    def backend(self) -> Backend:
        """What runs the graph."""
        return self._backend

    @property
    def kernels(self) -> str:
        """What runs the operators of ours: ``native (avx512vnni)``, or ``plain ONNX`` and why."""
        return str(self._backend.kernels)

    def __repr__(self) -> str:
        """Name, what goes in and what comes out, block, state and backend."""
        m = self.manifest
        rate = "" if m.input.rate is None else f" at {m.input.rate:g}/s"
        outputs = ", ".join(f"{o.name} {list(o.shape)} x {o.per_item}" for o in m.outputs)
        ahead = f", look-ahead {m.lookahead}" if m.lookahead else ""
        return (
            f"<Model {m.name}: {m.input.kind} {list(m.input.shape)}{rate} -> {outputs}; "
            f"block {m.block}{ahead}, {m.state_bytes} bytes of state, {self._backend.name}>"
        )

    def stream(
        self,
        block: int | None = None,
        batch: int | None = None,
        allow_nonfinite: bool = False,
        in_place: bool = False,
    ) -> Stream:
        """Open a stream at item 0.

        ``block`` is the number of input items per backend call, a multiple of the hop
        (default: the manifest's); larger is faster per item and later per result.
        ``batch`` runs so many sequences in step. ``allow_nonfinite`` lets NaN and infinity
        in; they may stay in the state until :meth:`Stream.reset`. ``in_place`` lets steps
        overwrite the state where the kernels can: half the memory, and faster where the state is
        larger than the caches; the price is one exception to what :class:`Stream` promises.

        Raises:
            UsageError: ``block`` or ``batch`` is out of range.
        """
        rows = self._rows(batch)
        return Stream(self, self._block(block), rows, bool(allow_nonfinite), in_place=bool(in_place))

    def resume(
        self,
        source: str | os.PathLike[str] | bytes,
        block: int | None = None,
        allow_nonfinite: bool | None = None,
        in_place: bool = False,
    ) -> Stream:
        """Open the stream that :meth:`Stream.save` or :meth:`Stream.snapshot` left.

        With the snapshot's own block (the default) it goes on to the same bytes as the
        stream it was taken from. ``allow_nonfinite`` is the snapshot's own by default.

        Raises:
            SnapshotError: unreadable, damaged, of another model, or of a newer version.
            UsageError: ``block`` is out of range.
        """
        saved = snapshot.decode(self, snapshot.read(source))
        block = self._block(saved.block if block is None else block)
        allow = saved.allow_nonfinite if allow_nonfinite is None else bool(allow_nonfinite)
        stream = Stream(self, block, self._rows(saved.batch), allow, saved.extra, bool(in_place))
        stream.restore(saved.state)
        return stream

    def pool(
        self,
        slots: int,
        block: int | None = None,
        *,
        gather: float = 0.0,
        limit: int | None = None,
        allow_nonfinite: bool = False,
    ) -> Pool:
        """Open ``slots`` slots for streams that are stepped as one batch.

        ``block`` is as in :meth:`stream`. ``gather`` is for how many seconds :meth:`Pool.wait` lets
        a stream that is ready wait for others; ``limit`` how many items may wait in one stream
        (default: 64 blocks).

        Raises:
            UsageError: ``slots``, ``block``, ``gather`` or ``limit`` is out of range.
        """
        from streamssm.pool import Pool

        size = self._block(block)
        most = _integer("limit", 64 * size if limit is None else limit)
        if _integer("slots", slots) < 1:
            raise UsageError(f"slots = {slots} is not positive")
        if most < size:
            raise UsageError(f"limit = {most} items is less than a block of {size}: no step would ever run")
        if not 0 <= gather < 3600:
            raise UsageError(f"gather = {gather} must be seconds from 0 on, such as 0.005")
        return Pool(self, slots, size, gather=gather, limit=most, allow_nonfinite=bool(allow_nonfinite))

    def async_pool(
        self,
        slots: int,
        block: int | None = None,
        *,
        gather: float = 0.0,
        limit: int | None = None,
        allow_nonfinite: bool = False,
        on_step: Callable[[int, float], None] | None = None,
    ) -> AsyncPool:
        """The same for asyncio: ``async with model.async_pool(64) as pool``; see :mod:`streamssm.aio`.

        ``on_step`` is called in the event loop after every step, with the number of streams that were run
        and the seconds that it took.

        Raises:
            UsageError: as of :meth:`pool`.
        """
        from streamssm.aio import AsyncPool
        from streamssm.chunks import ChunkRule

        pool = self.pool(slots, block, gather=gather, limit=limit, allow_nonfinite=allow_nonfinite)
        rule = ChunkRule(self.manifest.input, None, bool(allow_nonfinite))
        return AsyncPool(pool, rule, 64 * pool.block if limit is None else limit, on_step)

    @asynccontextmanager
    async def async_stream(
        self, block: int | None = None, *, snapshot: bytes | None = None, allow_nonfinite: bool = False
    ) -> AsyncIterator[AsyncStream]:
        """One stream for asyncio, at item 0 or where a snapshot left off: ``async with
        model.async_stream() as stream``.

        Raises:
            UsageError: ``block`` is out of range.
            SnapshotError: the snapshot is not one of a single stream of this model that goes on.
        """
        async with self.async_pool(1, block, allow_nonfinite=allow_nonfinite) as pool:
            yield await pool.open("stream", snapshot)

    def scan(self, x: Array, block: int | None = None, allow_nonfinite: bool = False) -> Result:
        """Run whole sequences, ``[T, *item_shape]`` or ``[batch, T, *item_shape]``.

        Equals the concatenated pushes and flush of a stream of the same block, byte for byte.

        Raises:
            InputError: ``x`` does not fit the model.
            UsageError: ``block`` is out of range.
            BackendError: the run failed.
        """
        batch = np.shape(x)[0] if np.ndim(x) == len(self.manifest.input.shape) + 2 else None
        if batch == 0:
            raise InputError("x has a batch of 0 sequences; pass at least one")
        stream = self.stream(block, batch, allow_nonfinite)
        body, tail = stream.push(x), stream.flush()
        axis = 0 if batch is None else 1
        if isinstance(body, dict) and isinstance(tail, dict):
            return {name: np.concatenate([body[name], tail[name]], axis) for name in body}
        return np.concatenate([body, tail], axis)

    def run(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        emit: str | None = None,
        decide: float | None = None,
        chunk: int | None = None,
        block: int | None = None,
        on_gap: str = "fill",
        queue: Queue | None = None,
        allow_nonfinite: bool = False,
        **reading: Any,
    ) -> Run:
        """Run a source as ``streamssm run`` does: an iterator over the rows, as plain dicts.

        ``source`` is a URI as on the command line ("meeting.wav", "mic", "mqtt://host/topic") or an open
        :class:`~streamssm.sources.base.Source`. ``emit`` is "events", "items", "tokens" or "audio";
        ``decide`` gives one row a record, as soon as a class reaches that probability. ``chunk`` is how
        many items are read at most at a time. Where a source is known to have lost items, ``on_gap`` "fill"
        puts silence or the last row in their place. ``queue`` bounds what waits of a live source.
        ``reading`` are fields of :class:`~streamssm.sources.base.Request`: format, rate, channels, channel,
        names and so on.

        Raises:
            UsageError: an argument is out of range, or they contradict each other.
            SourceError: the source cannot be opened, or does not fit the model; while the rows are read,
                that it is damaged, after all rows before.
        """
        from streamssm.live.queue import Queue
        from streamssm.running.script import request_of, start

        stream = self.stream(block, allow_nonfinite=allow_nonfinite, in_place=True)
        request = request_of(self.manifest, queue or Queue(), reading)
        return start(self, source, stream, request, emit=emit, decide=decide, chunk=chunk, on_gap=on_gap)

    def golden(self) -> tuple[Array, dict[str, Array]] | None:
        """The sample that the exporter stored: ``x [T, *item_shape]`` and, for each output,
        the frames ``[F, *shape]`` that the graph makes of the whole of it in one call, the
        warm-up of a look-ahead included (of an output with more than 256 columns, 256
        evenly spaced ones). None if the file has no sample.

        Raises:
            ModelFileError: the sample cannot be read.
        """
        from streamssm import golden

        return None if self._file.golden is None else golden.decode(self._file.golden, self.manifest)

    def duration(self, items: int) -> float | None:
        """Seconds that ``items`` input items last; None for an input without a clock."""
        rate = self.manifest.input.rate
        return None if rate is None else items / rate

    def _block(self, block: int | None) -> int:
        hop = self.manifest.input.hop
        size = _integer("block", self.manifest.block if block is None else block)
        if size < 1 or size % hop:
            raise UsageError(f"block = {size} is not a positive multiple of the hop of {hop} items")
        return size

    @staticmethod
    def _rows(batch: int | None) -> int | None:
        if batch is not None and _integer("batch", batch) < 1:
            raise UsageError(f"batch = {batch} is not positive; leave it out for one sequence")
        return batch


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{name} = {value!r} is not an integer") from error
