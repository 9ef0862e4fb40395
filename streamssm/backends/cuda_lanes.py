"""What streams own of a GPU: states, buffers, bindings and CUDA graphs.

The state lives on the device and has two sides, as on the CPU, read and written in turn. A step is:
input from pinned memory, the model, outputs to pinned memory, one wait. All of that becomes one CUDA
graph for each direction, which belongs to a lane, that is to its block and its number of rows. The
first step in a direction runs without, so that everything that is allocated once is allocated before
a graph is captured. Capturing runs nothing, and no state is bound to one buffer in and out, so no step
can advance it twice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamssm.backends import Array, Call
from streamssm.backends.cpu import one_line
from streamssm.backends.cuda_library import KeptState
from streamssm.backends.cudart import Buffer, DeviceArray, Graph, device_arrays, pinned
from streamssm.errors import BackendError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from streamssm.backends.cuda import CudaBackend
    from streamssm.backends.cuda_library import KeepRows
    from streamssm.backends.cudart import Queue
    from streamssm.manifest import Manifest

Shape = tuple[tuple[int, ...], str]
Work = Callable[[], None]


class Device(Protocol):
    """What lanes need of a backend that runs models on a GPU."""

    manifest: Manifest
    queue: Queue
    graphs: bool
    keep_rows: KeepRows | None

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held by whoever gives work to the queue."""

    def core(self, rows: int) -> Core:
        """The states of so many rows, and what runs the model on them."""

    def without_graphs(self, error: Exception) -> None:
        """Go on without CUDA graphs, and say so."""


def _shapes(backend: Device, items: int, rows: int) -> list[Shape]:
    """Of the input, then of every output, for ``items`` items of every row."""
    spec, outputs = backend.manifest.input, backend.manifest.outputs
    results = [((rows, int(items * o.per_item), *o.shape), "float32") for o in outputs]
    return [((rows, items, *spec.shape), spec.dtype), *results]


class Host:
    """Input and outputs in pinned memory, with device memory of the same shapes."""

    def __init__(self, backend: Device, items: int, rows: int) -> None:
        shapes = _shapes(backend, items, rows)
        self.x, *outputs = (pinned(*shape) for shape in shapes)
        self.y = tuple(outputs)
        self.device = device_arrays(backend.queue, shapes)
        self._queue = backend.queue

    def bring(self) -> None:
        """The input, to the device."""
        self._queue.copy(self.device[0].address, self.x.ctypes.data, self.x.nbytes)

    def fetch(self) -> None:
        """The outputs, to the host."""
        for array, source in zip(self.y, self.device[1:], strict=True):
            self._queue.copy(array.ctypes.data, source.address, array.nbytes)


class Core:
    """Both sides of the states of ``rows`` rows, and what runs the model on them."""

    def __init__(self, backend: Device, rows: int) -> None:
        self.backend, self.queue, self.rows = backend, backend.queue, rows
        shapes: list[Shape] = [((rows, *state.shape), state.dtype) for state in backend.manifest.states]
        self.sides = tuple(device_arrays(self.queue, shapes) for _ in (0, 1))
        self.side = 0  # that the next step reads
        self.capturing = False

    def infer(self, block: Sequence[DeviceArray], side: int) -> None:
        """Give the model to the queue, for input and outputs in ``block``."""
        raise NotImplementedError

    def short(self, x: Array) -> tuple[Array, ...]:
        """Outputs for ``x [rows, items, *item_shape]``, less than a block; the next states are on the side
        that is not current."""
        host = Host(self.backend, x.shape[1], self.rows)
        host.x[...] = x

        def work() -> None:
            host.bring()
            self.infer(host.device, self.side)
            host.fetch()

        self.run(work)
        return host.y

    def run(self, work: Work) -> None:
        """Do what gives work to the queue, and wait for it.

        Raises:
            BackendError: it failed.
        """
        try:
            with self.backend.lock:
                work()
                self.queue.wait()
        except Exception as error:
            name = self.backend.manifest.name
            raise BackendError(
                f"the GPU failed to run {name}: {one_line(error)}; the stream is as it was"
            ) from error


class RuntimeCore(Core):
    """The model is run by ONNX Runtime."""

    backend: CudaBackend

    def _bind(self, block: Sequence[DeviceArray], side: int) -> Any:
        manifest, binding = self.backend.manifest, self.backend.session.io_binding()

        def bind(call: Callable[..., None], name: str, array: DeviceArray) -> None:
            call(name, "cuda", 0, array.dtype, array.shape, array.address)

        bind(binding.bind_input, manifest.input.name, block[0])
        for output, array in zip(manifest.outputs, block[1:], strict=True):
            bind(binding.bind_output, output.name, array)
        before, after = self.sides[side], self.sides[1 - side]
        for state, old, new in zip(manifest.states, before, after, strict=True):
            bind(binding.bind_input, state.name, old)
            bind(binding.bind_output, state.next, new)
        return binding

    def infer(self, block: Sequence[DeviceArray], side: int) -> None:
        """Give the model to the queue, for input and outputs in ``block``.

        Without a graph ONNX Runtime may run a part on the processor. It copies what that reads when
        it is bound, so the binding is made anew each time and when the input is there; and it waits
        for the queue in the end, or what it copies by itself might come late.
        """
        if self.capturing:
            self.backend.session.run_with_iobinding(self._bind(block, side), self.backend.no_wait)
            return
        self.queue.wait()
        self.backend.session.run_with_iobinding(self._bind(block, side))


class _Step:
    """A step in both directions, the first time each as calls, later as a graph."""

    def __init__(
        self, core: Core, give: Callable[[int], None], host: Sequence[Array], graphs: bool = True
    ) -> None:
        """``give(side)`` gives the step that reads a side to the queue, call by call; with ``graphs``
        always the same calls, which copy from and to the ``host`` arrays."""
        self._core, self._give, self._may_capture = core, give, graphs
        self._host = {array.ctypes.data for array in host}
        self._graphs: list[Graph | None] = [None, None]
        self._warm = [False, False]

    def run(self) -> None:
        """Make the step; the other side is current after it.

        Raises:
            BackendError: it failed; the state is as it was.
        """
        core = self._core
        core.run(self._work(core.side))
        core.side = 1 - core.side

    def _work(self, side: int) -> Work:
        graph = self._graphs[side]
        if graph is not None:
            return graph.launch
        if self._warm[side] and self._may_capture and self._core.backend.graphs:
            return lambda: self._capture(side)
        self._warm[side] = True
        return lambda: self._give(side)

    def _capture(self, side: int) -> None:
        core = self._core
        core.capturing = True
        try:
            graph = core.queue.capture(lambda: self._give(side), self._host)
        except Exception as error:
            core.backend.without_graphs(error)
        else:
            self._graphs[side] = graph
        finally:
            core.capturing = False
        self._work(side)()


class CudaLane:
    """One stream; see :class:`streamssm.backends.Lane`."""

    def __init__(self, backend: Device, block: int, batch: int) -> None:
        self.torn = False  # no step is in place
        self._core = core = backend.core(batch)
        self._host = Host(backend, block, batch)
        self.x, self.y = self._host.x, self._host.y

        def give(side: int) -> None:
            self._host.bring()
            core.infer(self._host.device, side)
            self._host.fetch()

        self._step = _Step(core, give, (self.x, *self.y))

    @property
    def state(self) -> tuple[Any, ...]:
        """The current state, in the manifest's order; reads and writes go to the device."""
        return self._core.sides[self._core.side]

    def step(self) -> None:
        """Run the whole input block.

        Raises:
            BackendError: the run failed; the state is as it was.
        """
        self._step.run()

    def step_short(self, items: int) -> tuple[Array, ...]:
        """Run the first ``items`` of the block; returns fresh outputs.

        Raises:
            BackendError: the run failed; the state is as it was.
        """
        y = self._core.short(self.x[:, :items])
        self._core.side = 1 - self._core.side
        return y


class CudaSlots:
    """Slots that are run together; see :class:`streamssm.backends.Slots`.

    A slot is a row on the device. All rows run whoever is ready; those who are not have their states
    copied over from the side that was read.
    """

    def __init__(self, backend: Device, block: int, count: int) -> None:
        self._core = core = backend.core(count)
        self._host = Host(backend, block, count)
        self._active = pinned((count,), "uint8")
        self._there = Buffer(count)
        self._kept = tuple(_kept_states(core, side) for side in (0, 1))
        host = (self._host.x, *self._host.y)
        self._all = _Step(core, self._give, host)
        keeps = backend.keep_rows is not None
        self._some = _Step(core, self._give_some, (*host, self._active), graphs=keeps)

    def read(self, slot: int) -> tuple[Array, ...]:
        """A copy of a state, ``[1, *shape]`` each."""
        return tuple(state[slot : slot + 1] for state in self._core.sides[self._core.side])

    def write(self, slot: int, states: Sequence[Array] | None = None) -> None:
        """Set a state, to zeros by default."""
        self._host.x[slot] = 0  # the row may run unused
        for index, state in enumerate(self._core.sides[self._core.side]):
            state[slot] = 0 if states is None else states[index][0]

    def calls(self, ready: Array, others: Array) -> Iterator[Call]:
        """What runs a block of the slots that are ready, and of none of the others."""
        if len(ready):
            run = self._run_some if len(others) else self._run_all
            yield Call(ready, ready, self._host.x, partial(run, ready))

    def last_calls(self, ready: Array, items: int) -> Iterator[Call]:
        """What runs the first ``items`` of a block, less than all of it; the states stay as they are."""
        if len(ready):
            yield Call(ready, ready, self._host.x, partial(self._run_last, items))

    def _run_all(self, _: Array) -> tuple[Array, ...]:
        return self._guarded(self._all.run)

    def _run_some(self, ready: Array) -> tuple[Array, ...]:
        self._active[...] = 0
        self._active[ready] = 1
        return self._guarded(self._some.run)

    def _guarded(self, run: Callable[[], None]) -> tuple[Array, ...]:
        try:
            run()
        except BaseException:
            self._host.x[...] = 0  # or what the graph cannot run would be in the way of others
            raise
        return self._host.y

    def _run_last(self, items: int) -> tuple[Array, ...]:
        if not items:
            return tuple(y[:, :0] for y in self._host.y)
        return self._core.short(self._host.x[:, :items])

    def _give(self, side: int) -> None:
        self._host.bring()
        self._core.infer(self._host.device, side)
        self._host.fetch()

    def _give_some(self, side: int) -> None:
        core, keep = self._core, self._core.backend.keep_rows
        if keep is not None:
            core.queue.copy(self._there.address, self._active.ctypes.data, self._active.nbytes)
        self._give(side)
        if keep is None:
            self._keep_one_by_one(side)
        else:
            kept, count = self._kept[side].address, len(core.sides[0])
            keep(kept, count, self._there.address, core.rows, core.queue.number)

    def _keep_one_by_one(self, side: int) -> None:
        """Without the library; not to be captured, for the next step has other rows to keep."""
        idle = np.flatnonzero(self._active == 0).tolist()
        for old, new in zip(self._core.sides[side], self._core.sides[1 - side], strict=True):
            for row in idle:
                self._core.queue.copy(new.address + row * new.row, old.address + row * old.row, old.row)


def _kept_states(core: Core, side: int) -> Buffer:
    """The states that a step from this side leaves, as the kernel wants them, on the device."""
    pairs = list(zip(core.sides[side], core.sides[1 - side], strict=True))
    array = (KeptState * len(pairs))(*(KeptState(old.address, new.address, old.row) for old, new in pairs))
    buffer = Buffer(ctypes.sizeof(array))
    core.queue.copy(buffer.address, ctypes.addressof(array), buffer.size)
    core.queue.wait()
    return buffer
