"""What a lane owns of an engine: an execution context for each side of the states.

A context belongs to one block, one side and one set of buffers for as long as it lives, so its addresses
are set once, and a CUDA graph that was captured from it stays valid. Contexts share the memory for what lies
between the inputs and the outputs, because the one queue runs them one after another. State tensors
are read from one side and written to the other, never to one address: operators of TensorRT's own
do not promise to bear it, and a step that fails leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from streamssm.backends import Array
from streamssm.backends.cuda_lanes import Core, Host
from streamssm.backends.cudart import DeviceArray
from streamssm.errors import BackendError, UsageError

if TYPE_CHECKING:
    from streamssm.backends.tensorrt import TensorRTBackend


class TensorRTCore(Core):
    """The model is run by TensorRT."""

    backend: TensorRTBackend

    def __init__(self, backend: TensorRTBackend, rows: int) -> None:
        super().__init__(backend, rows)
        self._contexts: dict[tuple[int, int], Any] = {}
        self._hosts: dict[int, Host] = {}

    def infer(self, block: Sequence[DeviceArray], side: int) -> None:
        """Give the model to the queue, for input and outputs in ``block``.

        Raises:
            BackendError: TensorRT refused it.
        """
        key = (block[0].address, side)
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._made(block, side)
        elif self.capturing and not _capturable(context, self.queue.number):
            raise BackendError("TensorRT says that this engine cannot be captured")
        if not context.execute_async_v3(self.queue.number):
            raise BackendError(self.backend.logger.taken() or "TensorRT gives no reason")

    def short(self, x: Array) -> tuple[Array, ...]:
        """Outputs for ``x [rows, items, *item_shape]``, less than a block. An engine runs whole blocks, so
        zeros follow; what comes out for the items does not depend on what follows them."""
        items = x.shape[1]
        host = self._host(items)
        host.x[:, :items] = x
        host.x[:, items:] = 0

        def work() -> None:
            host.bring()
            self.infer(host.device, self.side)
            host.fetch()

        self.run(work)
        outputs = self.backend.manifest.outputs
        return tuple(y[:, : int(items * o.per_item)].copy() for y, o in zip(host.y, outputs, strict=True))

    def _host(self, items: int) -> Host:
        """Buffers of the smallest block that holds so many items."""
        fitting = [
            block for block in self.backend.folder.record.blocks if block >= items and self._holds(block)
        ]
        block = min(fitting, default=items)
        if block not in self._hosts:
            self._hosts[block] = Host(self.backend, block, self.rows)
        return self._hosts[block]

    def _holds(self, block: int) -> bool:
        try:
            self.backend.folder.record.profile(block, self.rows)
        except UsageError:
            return False
        return True

    def _made(self, block: Sequence[DeviceArray], side: int) -> Any:
        """A context with all its shapes and addresses."""
        items = block[0].shape[1]
        profile = self.backend.folder.record.profile(items, self.rows)
        context = self.backend.engine(profile.engine).context(profile.index, self.queue.number)
        for name, array in self._inputs(block, side):
            if not context.set_input_shape(name, tuple(array.shape)):
                raise BackendError(f"the engine does not take {name} of shape {list(array.shape)}")
        for name, array in (*self._inputs(block, side), *self._outputs(block, side)):
            if not context.set_tensor_address(name, array.address):
                raise BackendError(f"the engine has no tensor {name}")
        return context

    def _inputs(self, block: Sequence[DeviceArray], side: int) -> Iterator[tuple[str, DeviceArray]]:
        manifest = self.backend.manifest
        yield manifest.input.name, block[0]
        yield from self._states([state.name for state in manifest.states], side)

    def _outputs(self, block: Sequence[DeviceArray], side: int) -> Iterator[tuple[str, DeviceArray]]:
        manifest = self.backend.manifest
        yield from zip((output.name for output in manifest.outputs), block[1:], strict=True)
        yield from self._states([state.next for state in manifest.states], 1 - side)

    def _states(self, names: Sequence[str], side: int) -> Iterator[tuple[str, DeviceArray]]:
        """Those of one side that are tensors of the engine: states without elements are none."""
        pairs = zip(names, self.sides[side], strict=True)
        return ((name, array) for name, array in pairs if array.nbytes)


def _capturable(context: Any, queue: int) -> bool:
    asked = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX has it
    return asked is None or bool(asked(queue))
