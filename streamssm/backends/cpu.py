"""ONNX Runtime on the CPU.

Every buffer of a stream is bound once, to the input or output it serves. The state has two
sides, read and written in turn, and each direction has its own binding, so a step is one
call with no allocation. A stream that runs in place has both sides in one buffer for the states
that the last node of the graph writes (see ``native/fusion.py``). Buffers start at a multiple of
64 bytes: vectorised sums peel unaligned heads, and a result must not depend on where a buffer
happens to lie.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from streamssm.backends import Array
from streamssm.backends.requirements import check_version, maps_tensors, version_of
from streamssm.backends.signature import Port, check_signature
from streamssm.backends.slots import ROWS, LaneSlots
from streamssm.errors import BackendError, ModelFileError
from streamssm.manifest import Manifest
from streamssm.native import Kernels, Library, Loan, choose
from streamssm.native.fusion import fuse_graph
from streamssm.native.graph import Graph, graph_of
from streamssm.native.linear_attention import lower_file
from streamssm.onnx_file import ModelFile

_OLDEST = (1, 20)
_INSTALL = f'pip install "onnxruntime>={_OLDEST[0]}.{_OLDEST[1]}"'
_ALIGNMENT = 64
#: the option that says where tensors lie that a model refers to
FOLDER = "session.model_external_initializers_file_folder_path"
#: failures of ONNX Runtime that are the file's fault, by class name
_FILE_FAULTS = {"InvalidGraph", "InvalidProtobuf", "InvalidArgument"}


def aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros that start at a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_together(shapes: list[tuple[tuple[int, ...], str]]) -> tuple[Array, ...]:
    """Zeros of several shapes and dtypes in one piece of memory, each at a multiple of 64 bytes.

    One large piece may get large pages, which spares a large state many look-ups of addresses.
    """
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
    ends = list(itertools.accumulate(size + -size % _ALIGNMENT for size in sizes))
    whole = aligned((ends[-1] if ends else 0,), "uint8")
    starts = [0, *ends[:-1]]
    return tuple(
        whole[start : start + size].view(dtype).reshape(shape)
        for start, size, (shape, dtype) in zip(starts, sizes, shapes, strict=False)
    )


def one_line(error: BaseException, limit: int = 400) -> str:
    """The text of a backend's exception on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def bound_call(session: Any, binding: Any) -> Callable[[], object]:
    """``session.run_with_iobinding(binding)`` as a call without arguments.

    It skips the session's Python layer where its attributes are as they have been so far:
    that layer only serves WebGPU graph capture, and costs a few microseconds on each call.
    """
    direct = getattr(getattr(session, "_sess", None), "run_with_iobinding", None)
    inner = getattr(binding, "_iobinding", None)
    if direct is None or inner is None:
        return partial(session.run_with_iobinding, binding)
    return partial(direct, inner, None)


def import_onnxruntime() -> Any:
    """The onnxruntime module, its telemetry off.

    The official builds of onnxruntime 1.31 and later report on their use over the network and
    keep a device identifier in the home folder, unless told not to before they are imported.
    An environment that sets the variable itself is left as it is.

    Raises:
        BackendError: not installed, or older than this package needs.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({one_line(error)}); {_INSTALL}") from error
    version = getattr(onnxruntime, "__version__", "unknown")
    if version_of(version) < _OLDEST:
        raise BackendError(f"onnxruntime {version} is too old; {_INSTALL}")
    return onnxruntime


class CpuBackend:
    """One session, shared by all streams of a model."""

    name = "cpu"
    blocks = None
    most_rows = None

    def __init__(self, file: ModelFile) -> None:
        self._manifest = file.manifest
        self._runtime = import_onnxruntime()
        check_version(file.path, file.manifest, self._runtime.__version__)
        self._loans: list[Loan] = []
        self._overwritable: frozenset[tuple[str, str]] = frozenset()
        self._session, self.kernels = self._open(file)
        file.check_unchanged()  # what was hashed is what was opened
        check_signature(
            file.path,
            file.manifest,
            [Port(port.name, port.type, tuple(port.shape)) for port in self._session.get_inputs()],
            [Port(port.name, port.type, tuple(port.shape)) for port in self._session.get_outputs()],
        )

    def lane(self, block: int, batch: int, in_place: bool = False, like: CpuLane | None = None) -> CpuLane:
        """Buffers for one stream, its state at zero; ``x`` and ``y`` may be those of another lane."""
        # the manifest may keep another value under a state's name than what is computed from it
        pairs = self._overwritable if in_place else frozenset()
        overwritten = frozenset(s.name for s in self._manifest.states if (s.name, s.next) in pairs)
        return CpuLane(self._runtime, self._session, self._manifest, block, batch, overwritten, like)

    def slots(self, block: int, count: int) -> LaneSlots:
        """States at zero for ``count`` streams that are run together."""
        rows = min(count, ROWS)
        common = self.lane(block, rows, in_place=True)
        lanes = [self.lane(block, rows, in_place=True, like=common) for _ in range(0, count, rows)]
        return LaneSlots(lanes, common)

    def _open(self, file: ModelFile) -> tuple[Any, Kernels]:
        """A session, and the kernels it runs on: native ones where they serve the whole model."""
        kernels = choose(file.op_counts)
        if kernels.library is not None:
            try:
                return self._start_native(file, kernels, kernels.library)
            except Exception as error:  # such as a dtype for which there is no kernel
                kernels = Kernels(None, f"they cannot run it ({one_line(error)})")
        try:
            return self._start_plain(file, kernels)
        except Exception as error:
            file.check_unchanged()
            kind = ModelFileError if type(error).__name__ in _FILE_FAULTS else BackendError
            raise kind(
                f"onnxruntime {self._runtime.__version__} cannot open {file.path}: {one_line(error)}"
            ) from error

    def _start_native(self, file: ModelFile, kernels: Kernels, library: Library) -> tuple[Any, Kernels]:
        """A session on the fused graph if there is something to fuse, else on the file."""

        def lend(weights: Array) -> int:
            self._loans.append(Loan(library, weights))
            return self._loans[-1].number

        graph = self._graph(file)
        fused = fuse_graph(graph, library.instructions, lend) if kernels.fused else None
        if fused is None:
            return self._start(file, self._content(graph), library), replace(kernels, fused=False)
        self._overwritable = fused.in_place
        return self._start(file, fused.model, library), kernels

    def _start_plain(self, file: ModelFile, kernels: Kernels) -> tuple[Any, Kernels]:
        """A session on the bodies in the file, but where onnxruntime has an operator of its own that
        is faster; not if the bodies were asked for."""
        lowered = None if kernels.switched_off else lower_file(file, self._runtime)
        if lowered is None:
            return self._start(file, self._content(self._graph(file)), None), kernels
        return self._start(file, lowered, None), replace(kernels, lowered=True)

    def _graph(self, file: ModelFile) -> Graph:
        return graph_of(file, maps_tensors(self._runtime.__version__))

    @staticmethod
    def _content(graph: Graph) -> bytes | None:
        """A model whose large tensors are mapped from the file, so that they are not in memory thrice
        while it is opened; None for the file itself, if there are none."""
        return graph.rewritten(graph.nodes, []) if graph.large else None

    def _start(self, file: ModelFile, model: bytes | None, library: Library | None) -> Any:
        """A session on ``model``, which refers to tensors in the file and those beside it, or on the
        file as it is."""
        options = self._options()
        if library is not None:
            options.register_custom_ops_library(os.fspath(library.path))
        options.add_session_config_entry(FOLDER, os.path.dirname(os.path.realpath(file.path)))
        return self._runtime.InferenceSession(
            os.fspath(file.path) if model is None else model,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # it prints to stdout, which is for data
            read_config_from_model=0,  # a model does not set our options
        )

    def _options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
        # a waiting thread that spins burns a whole core between two chunks of a live stream
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 4  # every failure is raised, with its text
        return options


class CpuLane:
    """Buffers and bindings of one stream; see :class:`streamssm.backends.Lane`."""

    def __init__(
        self,
        runtime: Any,
        session: Any,
        manifest: Manifest,
        block: int,
        batch: int,
        overwritten: frozenset[str],
        like: CpuLane | None = None,
    ) -> None:
        self._runtime, self._session, self._manifest, self._batch = runtime, session, manifest, batch
        self.x: Array = self._inputs(block) if like is None else like.x
        self.y: tuple[Array, ...] = self._outputs(block) if like is None else like.y
        first = self._states()
        self._sides = (first, self._other_side(first, overwritten))
        self._in_place, self.torn = bool(overwritten), False
        self._side = 0
        self._bindings = tuple(self._bind(self.x, self.y, side) for side in (0, 1))
        self._calls = tuple(bound_call(session, binding) for binding in self._bindings)

    @property
    def state(self) -> tuple[Array, ...]:
        """The current state, in the manifest's order."""
        return self._sides[self._side]

    def step(self) -> None:
        """Run the whole input block.

        Raises:
            BackendError: the run failed; the state is as it was.
        """
        self._advance(self._calls[self._side])

    def step_short(self, items: int) -> tuple[Array, ...]:
        """Run the first ``items`` of the block; returns fresh outputs.

        Raises:
            BackendError: the run failed; the state is as it was.
        """
        x, y = self._inputs(items), self._outputs(items)
        x[...] = self.x[:, :items]
        self._advance(partial(self._session.run_with_iobinding, self._bind(x, y, self._side)))
        return y

    def _advance(self, call: Callable[[], object]) -> None:
        """Make the call, which reads this side of the state and writes the other, and turn to that."""
        self.torn = self._in_place
        try:
            call()
        except Exception as error:
            self.torn = False
            raise self._failure(error) from error
        self._side, self.torn = 1 - self._side, False

    def _bind(self, x: Array, y: tuple[Array, ...], side: int) -> Any:
        """A binding that reads the state from one side and writes it to the other."""
        binding = self._session.io_binding()
        wrap = self._runtime.OrtValue.ortvalue_from_numpy  # shares the array's memory
        binding.bind_ortvalue_input(self._manifest.input.name, wrap(x))
        for output, array in zip(self._manifest.outputs, y, strict=True):
            binding.bind_ortvalue_output(output.name, wrap(array))
        for index, state in enumerate(self._manifest.states):
            binding.bind_ortvalue_input(state.name, wrap(self._sides[side][index]))
            binding.bind_ortvalue_output(state.next, wrap(self._sides[1 - side][index]))
        return binding

    def _inputs(self, items: int) -> Array:
        spec = self._manifest.input
        return aligned((self._batch, items, *spec.shape), spec.dtype)

    def _outputs(self, items: int) -> tuple[Array, ...]:
        return tuple(
            aligned((self._batch, int(items * output.per_item), *output.shape), "float32")
            for output in self._manifest.outputs
        )

    def _states(self) -> tuple[Array, ...]:
        return aligned_together(
            [((self._batch, *state.shape), state.dtype) for state in self._manifest.states]
        )

    def _other_side(self, first: tuple[Array, ...], overwritten: frozenset[str]) -> tuple[Array, ...]:
        named = {state.name: array for state, array in zip(self._manifest.states, first, strict=True)}
        kept = [state for state in self._manifest.states if state.name not in overwritten]
        fresh = aligned_together([((self._batch, *state.shape), state.dtype) for state in kept])
        named |= {state.name: array for state, array in zip(kept, fresh, strict=True)}
        return tuple(named.values())

    def _failure(self, error: Exception) -> BackendError:
        return BackendError(
            f"onnxruntime {self._runtime.__version__} failed to run "
            f"{self._manifest.name}: {one_line(error)}; the stream is as it was"
        )
