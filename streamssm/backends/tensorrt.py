"""TensorRT, or TensorRT-RTX, on the GPU that an engine was built for.

An engine folder is checked before TensorRT reads it: its files' hashes, the GPU, the version, the plugins.
Then it has to give the golden vectors back on this very device (``streamssm.tensorrt.verify``). Lanes and
slots are those of the CUDA backend; what differs is what runs the model: see ``tensorrt_lanes.py``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from streamssm.backends import tensorrt_rtx
from streamssm.backends.cpu import one_line
from streamssm.backends.cuda import GRAPHS
from streamssm.backends.cuda_lanes import CudaLane, CudaSlots
from streamssm.backends.cuda_library import KeepRows
from streamssm.backends.cudart import Buffer, Queue
from streamssm.backends.signature import Port, check_signature
from streamssm.backends.tensorrt_lanes import TensorRTCore
from streamssm.errors import BackendError, UsageError
from streamssm.native import Kernels
from streamssm.onnx_file import ModelFile
from streamssm.tensorrt.engine_library import EngineLibrary, find_library
from streamssm.tensorrt.folder import EngineFolder, EngineRecord, is_engine_folder, open_folder
from streamssm.tensorrt.plugins import PluginLibrary, build_for, load_plugins

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class EngineKernels(Kernels):
    """What runs the operators of ours in an engine."""

    def __str__(self) -> str:
        """``TensorRT 10.16.1 (plugins 0.1.0)`` or ``TensorRT-RTX 1.7.1 (plain operators)``."""
        return self.reason


class Engine:
    """One deserialised engine, and the memory that its contexts take turns in: all run in one queue."""

    def __init__(self, backend: TensorRTBackend, path: Path) -> None:
        record, logger = backend.folder.record, backend.logger
        logger.clear()
        content = path.read_bytes()
        self.engine = backend.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise BackendError(
                f"{backend.title} does not take {path}, which {record.version} built for sm_{record.sm}: "
                f"{logger.text or 'no reason given'}; build it again here: {record.command(target='local')}"
            )
        self.module = backend.module
        self.size = max(1, int(self.engine.device_memory_size_v2))
        self.memory = Buffer(self.size)
        self.settings = tensorrt_rtx.settings(self.module, self.engine, content)

    def context(self, profile: int, queue: int) -> Any:
        """A new execution context, of an optimisation profile."""
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy if self.settings is None else self.settings.config
        context = self.engine.create_execution_context(how)
        if context is None:
            raise BackendError("no execution context could be made: not enough memory on the device")
        context.set_device_memory(self.memory.address, self.size)
        if not context.set_optimization_profile_async(profile, queue):
            raise BackendError(f"the engine has no optimisation profile {profile}")
        return context

    def ports(self, outputs: bool) -> Iterable[Port]:
        """Inputs or outputs; batch and time are open."""
        mode = self.module.TensorIOMode.OUTPUT if outputs else self.module.TensorIOMode.INPUT
        engine = self.engine
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == mode:
                yield Port(
                    name, _type_of(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))
                )


class TensorRTBackend:
    """One TensorRT runtime and one CUDA stream, shared by all streams of a model."""

    name = "tensorrt"

    def __init__(self, file: ModelFile) -> None:
        from streamssm.tensorrt.verify import check_parity

        self.folder = _folder_of(file)
        record, self.manifest = self.folder.record, self.folder.manifest
        _check_device(self.folder)
        self.module = import_tensorrt(record)
        self.title = f"{_TITLES[record.kind]} {self.module.__version__}"
        _check_version(self.folder, str(self.module.__version__))
        self.plugins = _load_plugins(self.module, record)
        said = "plain operators" if self.plugins is None else f"plugins {self.plugins.version}"
        self._kernels = EngineKernels(None, f"{self.title} ({said})", precision=_DTYPES[record.precision])
        self.keep_rows: KeepRows | None = _keep_rows(self.plugins)
        self.queue, self.lock = Queue(), threading.Lock()
        self.logger = make_logger(self.module)
        self.runtime = self.module.Runtime(self.logger)
        self.graphs = graphs_wanted()
        self._engines: dict[str, Engine] = {}
        for profile in record.profiles:
            self._check_ports(self.engine(profile.engine))
        check_parity(self)
        for engine in self._engines.values():
            if engine.settings is not None:
                engine.settings.save()

    @property
    def kernels(self) -> Kernels:
        """What runs the operators of ours."""
        return self._kernels

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that it was built for, and no others."""
        return self.folder.record.blocks

    @property
    def most_rows(self) -> int:
        """The most sequences at once, in any block."""
        return min(
            max(profile.batch[2] for profile in self.folder.record.profiles if profile.block == block)
            for block in self.blocks
        )

    def lane(self, block: int, batch: int, in_place: bool = False) -> CudaLane:
        """Buffers for one stream, its state at zero.

        Raises:
            UsageError: the engine was not built for such a block or batch.
        """
        self.folder.record.profile(block, batch)
        return CudaLane(self, block, batch)

    def slots(self, block: int, count: int) -> CudaSlots:
        """States at zero for ``count`` streams that are run together.

        Raises:
            UsageError: the engine was not built for such a block, or for so many.
        """
        self.folder.record.profile(block, count)
        return CudaSlots(self, block, count)

    def core(self, rows: int) -> TensorRTCore:
        """States and execution contexts of so many rows."""
        return TensorRTCore(self, rows)

    def engine(self, name: str) -> Engine:
        """The engine of this name, read once.

        Raises:
            BackendError: TensorRT does not take it.
        """
        if name not in self._engines:
            self._engines[name] = Engine(self, self.folder.path / name)
        return self._engines[name]

    def without_graphs(self, error: Exception) -> None:
        """Go on without CUDA graphs, and say so."""
        self.graphs = False
        logging.getLogger("streamssm").warning(
            "%s runs without CUDA graphs, more slowly: %s", self.manifest.name, one_line(error)
        )

    def _check_ports(self, engine: Engine) -> None:
        states = {name for state in self.manifest.states for name in (state.name, state.next)}

        def opened(port: Port) -> Port:
            # an engine may be for one block and one number of rows
            free = 1 if port.name in states else 2
            return Port(port.name, port.type, (None,) * free + port.shape[free:])

        sides = (map(opened, engine.ports(outputs=outputs)) for outputs in (False, True))
        bound = {name for name, _ in self.folder.record.states}
        kept = tuple(state for state in self.manifest.states if state.name in bound)
        check_signature(self.folder.path, replace(self.manifest, states=kept), *sides)


def import_tensorrt(record: EngineRecord) -> Any:
    """The module that runs an engine, or what stands in its place for a Python that it is not made for.

    Raises:
        BackendError: it is not installed, or cannot be imported; says how to install it.
    """
    title, extra = _TITLES[record.kind], _EXTRAS[record.kind]
    try:
        module = import_module(record.kind)
        if not hasattr(module, "Runtime"):
            raise ImportError(f"{record.kind} is a folder on the path of Python, and no module")
        return module
    except ImportError as error:
        library = find_library() if record.kind == "tensorrt" else None
        if library is not None:
            return EngineLibrary(library)
        raise BackendError(
            f"{record.name} is an engine for {title}, which is not installed ({one_line(error)}): "
            f"pip install 'streamssm[{extra}]'" + _JETSON_HINT.get(record.sm, "")
        ) from error
    except Exception as error:  # such as a library of its own that is missing
        raise BackendError(
            f"{title} cannot be imported ({one_line(error)}): "
            f"pip install --force-reinstall 'streamssm[{extra}]'"
        ) from error


_APT = "; on a Jetson it comes with JetPack: sudo apt-get install python3-libnvinfer"
_JETSON_HINT = {87: _APT, 110: _APT}


def graphs_wanted() -> bool:
    """Whether steps become CUDA graphs; the same switch as of the CUDA backend."""
    return os.environ.get(GRAPHS, "on") != "off"


def make_logger(module: Any) -> Any:
    """A logger for TensorRT that keeps what went wrong and passes warnings on."""

    class Logger(module.ILogger):  # type: ignore[misc]
        """Errors are kept as :attr:`text`, for whoever raises; warnings go to the logger ``streamssm``."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == module.ILogger.WARNING:
                logging.getLogger("streamssm").info("%s", message)

        def clear(self) -> None:
            """Forget the errors so far."""
            self.errors.clear()

        @property
        def text(self) -> str:
            """The first errors since, on one line."""
            return " ".join(" ".join(self.errors[:2]).split())[:400]

        def taken(self) -> str:
            """The same, once: the next failure has reasons of its own."""
            text = self.text
            self.clear()
            return text

    return Logger()


def _folder_of(file: ModelFile) -> EngineFolder:
    if not is_engine_folder(file.path):
        raise UsageError(
            f"{file.path} is a model and no engine, which is what backend='tensorrt' runs; build one: "
            f"streamssm export {file.path} --format tensorrt --target local"
        )
    return open_folder(file.path)


def _check_device(folder: EngineFolder) -> None:
    from streamssm.tensorrt.local import compute_capability

    record, sm = folder.record, compute_capability()
    if sm is None:
        raise BackendError(
            f"{folder.path} is for a GPU (sm_{record.sm}, {record.target}), and this machine has none; copy "
            f"it to one, or run the model itself here: streamssm run {record.source} --backend cpu"
        )
    if sm != record.sm:
        raise BackendError(
            f"{folder.path} was built for sm_{record.sm} ({record.target}), this GPU is sm_{sm}; "
            f"build one for it: {record.command(target='local')}"
        )


def _check_version(folder: EngineFolder, version: str) -> None:
    """Major and minor must be those of the builder; of the rest TensorRT itself judges."""
    record = folder.record
    if record.version.split(".")[:2] != version.split(".")[:2]:
        title, package = _TITLES[record.kind], record.kind.replace("_", "-")
        raise BackendError(
            f"{folder.path} was built by {title} {record.version}, {version} is installed, and an engine "
            f"runs on the version that built it; build it again: {record.command(target='local')}, or "
            f"pip install {package}=={record.version}"
        )


def _load_plugins(module: Any, record: EngineRecord) -> PluginLibrary | None:
    """The plugins, if the engine needs them."""
    if not record.plugins:
        return None
    found = load_plugins(module)
    if found.version != record.plugin_version:
        raise BackendError(
            f"the engine needs the plugins of streamssm {record.plugin_version}, {found.path} has "
            f"{found.version}; build it again: {record.command(target='local')}"
        )
    if not found.runs_on(record.sm):
        raise BackendError(
            f"the plugins in {found.path} have code for sm {found.archs}, this GPU is sm_{record.sm}; build "
            f"them for it: {build_for(record.sm)}"
        )
    return found


def _keep_rows(plugins: PluginLibrary | None) -> KeepRows | None:
    """The kernel that keeps the states of idle rows, of either library that holds it; without it they are
    copied one by one, and no graph is made of such steps."""
    from streamssm.backends import cuda_library

    ours = cuda_library.library()
    found = [None if isinstance(ours, str) else ours.path, None if plugins is None else plugins.path]
    for path in found:
        with suppress(AttributeError, OSError):
            if path is not None:
                return KeepRows(path)
    return None


def _type_of(dtype: Any) -> str:
    name = str(getattr(dtype, "name", dtype)).lower()
    return {"float": "tensor(float)", "int64": "tensor(int64)"}.get(name, name)
