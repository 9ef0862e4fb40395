"""Backends: what runs a model's graph. A backend is opened once for a model and shared by
its streams; each stream owns one lane of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from streamssm.errors import UsageError
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

    def step_rows(self, active: Array) -> None:
        """:meth:`step` for the rows where ``active [batch]`` is true; the others keep their state.
        Not for lanes in place. Raises BackendError."""

    def try_short(self, x: Array) -> tuple[Array, ...]:
        """Outputs for ``x [batch, items, *item_shape]`` from the current state, which stays as it is.
        Not for lanes in place. Raises BackendError."""

    def step_short(self, items: int) -> tuple[Array, ...]:
        """Run the first ``items`` of the block and return fresh outputs. Raises BackendError."""


class Backend(Protocol):
    """An opened model: immutable, shared by threads."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""

    @property
    def kernels(self) -> Kernels:
        """What runs the operators of ours."""

    def lane(self, block: int, batch: int, in_place: bool = False) -> Lane:
        """Buffers for one stream, its state at zero. ``in_place`` permits that a step overwrites the
        state it reads, where that is safe unless it is interrupted."""


def _open_cpu(file: ModelFile) -> Backend:
    from streamssm.backends.cpu import CpuBackend

    return CpuBackend(file)


_BACKENDS: dict[str, Callable[[ModelFile], Backend]] = {"cpu": _open_cpu}


def resolve(name: str) -> str:
    """The backend that ``name`` stands for; ``auto`` is the best one for this machine.

    Raises:
        UsageError: there is no such backend.
    """
    if name == "auto":
        return "cpu"
    if name not in _BACKENDS:
        raise UsageError(f"there is no backend {name!r}; choose one of {', '.join(names())}")
    return name


def names() -> Sequence[str]:
    """Every value that ``backend=`` accepts."""
    return ("auto", *_BACKENDS)


def open_backend(name: str, file: ModelFile) -> Backend:
    """Open a model on the named backend.

    Raises:
        UsageError: there is no such backend.
        BackendError: it is not installed or cannot run the model.
        ManifestError: the graph is not the one the manifest describes.
    """
    return _BACKENDS[resolve(name)](file)
