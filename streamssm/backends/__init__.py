"""Backends: what runs a model's graph. A backend is opened once for a model and shared by
its streams; each stream owns one lane of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from streamssm.errors import BackendError, UsageError
from streamssm.native import Kernels
from streamssm.onnx_file import ModelFile

Array = npt.NDArray[Any]


class Lane(Protocol):
    """The buffers of one stream: its input block, its last outputs, its state.

    A lane belongs to one thread at a time. A step that raises leaves the state as it was; one in
    place that is cut short by an interrupt (KeyboardInterrupt, SystemExit) leaves it torn.
    """

    torn: bool
    """Whether the state is of no use; to be cleared by whoever writes a whole new one."""

    @property
    def x(self) -> Array:
        """Input buffer ``[batch, block, *item_shape]``, to be filled before a step."""

    @property
    def y(self) -> tuple[Array, ...]:
        """Outputs of the last step, ``[batch, frames, *shape]`` each; the next step overwrites them."""

    @property
    def state(self) -> tuple[Array, ...]:
        """The current state, ``[batch, *shape]`` each, in the manifest's order; writable."""

    def step(self) -> None:
        """Run the whole input block. Raises BackendError."""

    def step_short(self, items: int) -> tuple[Array, ...]:
        """Run the first ``items`` of the block and return fresh outputs. Raises BackendError."""


class Call(NamedTuple):
    """One run of a backend for some slots."""

    slots: Array
    rows: Array | range
    """Their rows in ``x`` and in the outputs."""
    x: Array
    """Input ``[rows, block, *item_shape]``, to be filled where its slots are."""
    run: Callable[[], tuple[Array, ...]]
    """Gives outputs ``[rows, frames, *shape]``, which the next call overwrites. Raises BackendError:
    then every state is as it was. An interrupt (KeyboardInterrupt) leaves the states of no use."""


class Slots(Protocol):
    """The states of many streams, of which those that are ready are run together.

    Belongs to one thread at a time. What a slot gets does not depend on which others run with it.
    """

    def read(self, slot: int) -> tuple[Array, ...]:
        """A copy of a state, ``[1, *shape]`` each, in the manifest's order."""

    def write(self, slot: int, states: Sequence[Array] | None = None) -> None:
        """Set a state, to zeros by default."""

    def calls(self, ready: Array, others: Array) -> Iterator[Call]:
        """Calls, each to be run before the next is taken, for a block of every slot that is
        ``ready``. ``others`` are the slots whose state must stay; the rest are free. Both are sorted."""

    def last_calls(self, ready: Array, items: int) -> Iterator[Call]:
        """Calls for the first ``items`` of a block, less than all of it; the states stay."""


class Backend(Protocol):
    """An opened model: immutable, shared by threads."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""

    @property
    def kernels(self) -> Kernels:
        """What runs the operators of ours."""

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """The blocks that it was built for, where it runs no others; None if it runs any."""

    @property
    def most_rows(self) -> int | None:
        """The most sequences it runs at once; None if there is no such limit."""

    def lane(self, block: int, batch: int, in_place: bool = False) -> Lane:
        """Buffers for one stream, its state at zero. ``in_place`` permits that a step overwrites the
        state it reads, where that is safe unless it is interrupted."""

    def slots(self, block: int, count: int) -> Slots:
        """States at zero for ``count`` streams that are run together, a block each."""


def _open_cpu(file: ModelFile) -> Backend:
    from streamssm.backends.cpu import CpuBackend

    return CpuBackend(file)


def _open_cuda(file: ModelFile) -> Backend:
    from streamssm.backends.cuda import CudaBackend

    return CudaBackend(file)


def _open_tensorrt(file: ModelFile) -> Backend:
    from streamssm.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(file)


_BACKENDS: dict[str, Callable[[ModelFile], Backend]] = {
    "cpu": _open_cpu,
    "cuda": _open_cuda,
    "tensorrt": _open_tensorrt,
}
#: bytes of a model from which on a GPU is faster than a processor also for one stream
_LARGE = 32 << 20


def _open_best(file: ModelFile) -> Backend:
    """The GPU for a large model if one can be used, else the processor."""
    if file.nbytes < _LARGE:
        return _open_cpu(file)
    from streamssm.backends.cuda import usable

    if not usable():
        return _open_cpu(file)
    try:
        return _open_cuda(file)
    except BackendError as error:
        logging.getLogger("streamssm").warning("%s; the processor runs it", error)
        return _open_cpu(file)


def resolve(name: str) -> str:
    """``name`` itself; ``auto`` stands for the best one for a model on this machine.

    Raises:
        UsageError: there is no such backend.
    """
    if name not in names():
        raise UsageError(f"there is no backend {name!r}; choose one of {', '.join(names())}")
    return name


def names() -> Sequence[str]:
    """Every value that ``backend=`` accepts."""
    return ("auto", *_BACKENDS)


def _open_engine(name: str, file: ModelFile, precision: str) -> Backend:
    """Open an engine folder, which is for one backend and of one precision."""
    if name not in ("auto", "tensorrt"):
        raise UsageError(f"{file.path} is an engine, which backend {name!r} cannot run; choose tensorrt")
    if precision != "float32":
        raise UsageError(f"precision={precision!r} is that of a model; an engine has the one it was built in")
    return _open_tensorrt(file)


def _open_rounded(name: str, file: ModelFile, precision: str) -> Backend:
    """Open a model whose matrices are rounded as it is loaded, which is for a GPU."""
    from streamssm.backends.cuda import CudaBackend
    from streamssm.native.stacks import PRECISIONS

    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if name not in ("auto", "cuda"):
        raise UsageError(
            f"precision={precision!r} is for backend='cuda', not {name!r}; a smaller file for any backend "
            "comes from: streamssm quantize --weights int8"
        )
    return CudaBackend(file, precision)


def open_backend(name: str, file: ModelFile, precision: str = "float32") -> Backend:
    """Open a model on the named backend; other than with ``"float32"`` its matrices are rounded to
    ``"float16"`` or ``"bfloat16"``.

    Raises:
        UsageError: there is no such backend, or none of it in this precision.
        BackendError: it is not installed or cannot run the model.
        ManifestError: the graph is not the one the manifest describes.
    """
    if file.path.is_dir():
        return _open_engine(resolve(name), file, precision)
    if precision != "float32":
        return _open_rounded(resolve(name), file, precision)
    return _open_best(file) if name == "auto" else _BACKENDS[resolve(name)](file)
