"""Builds engines, with TensorRT or with TensorRT-RTX, which needs no GPU for that.

Networks are strongly typed: a compiler may fuse, but computes every tensor in the type that the graph gives
it. TF32 is off: a float32 product is one. Without plugins there is an engine for each block; with them one
engine holds a profile for each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamssm.atomic import write_bytes
from streamssm.errors import BackendError, ExportError, OutputError, UsageError
from streamssm.tensorrt.dialect import to_dialect
from streamssm.tensorrt.folder import (
    FORMAT,
    EngineFile,
    EngineFolder,
    EngineRecord,
    Kind,
    Precision,
    Profile,
    bound_states,
    check_replaceable,
    engine_file,
    write_folder,
)
from streamssm.tensorrt.opening import source_of
from streamssm.tensorrt.plugins import load_plugins
from streamssm.tensorrt.profiles import Calls, shapes_of
from streamssm.tensorrt.watching import Progress, logger, progress_monitor, stopped_by_interrupt

if TYPE_CHECKING:
    from streamssm.onnx_file import ModelFile
    from streamssm.tensorrt.targets import Target

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


@dataclass(frozen=True)
class Options:
    """How engines are built. ``timing_cache`` is a file that measured kernels are kept in (TensorRT only:
    TensorRT-RTX measures none); ``verify`` compares the graph with the model before it is compiled."""

    calls: Calls
    precision: Precision = "fp32"
    plugins: bool = False
    timing_cache: Path | None = None
    verify: bool = True


@dataclass(frozen=True)
class Built:
    """A serialised engine, how long it took, in seconds, and the kernels of a call, if the library said."""

    data: bytes
    seconds: float
    kernels: int | None


def library(kind: Kind) -> Any:
    """The module ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        BackendError: it is not installed, or a library that it needs is missing.
    """
    remedy = f"pip install 'streamssm[{_EXTRAS[kind]}]'"
    try:
        module = import_module(kind)
    except (ImportError, OSError, RuntimeError) as error:  # of a library that is missing, or too old
        raise BackendError(f"{kind} cannot be imported ({error}); {remedy}") from error
    if not hasattr(module, "Builder"):  # a runtime alone, or any folder of this name
        raise BackendError(f"what is installed as {kind} builds no engines; {remedy}")
    return module


def export_engine(
    file: ModelFile, target: Target, output: Path, options: Options, progress: Progress | None = None
) -> EngineFolder:
    """Build the engines of a model for a target, and write them as a folder.

    Raises:
        UsageError: plugins with TensorRT-RTX, which takes none.
        BackendError: the library or the plugins are not installed, or have nothing for the target.
        ExportError: the model has what cannot be built; says which node.
        GateError: the graph differs from the model by more than the tolerance table allows.
        OutputError: the folder cannot be written.
    """
    tell = progress or (lambda what, done, total: None)
    if options.plugins and target.kind == "tensorrt_rtx":
        raise UsageError(
            f"target {target.name} is built by TensorRT-RTX, which takes no plugins; --plugins off"
        )
    check_replaceable(output)
    module = library(target.kind)
    plugin_version = load_plugins(module).version if options.plugins else ""

    def make(folder: Path) -> EngineRecord:
        profiles: list[Profile] = []
        files: list[EngineFile] = []
        for name, blocks in _engines(options):
            data = _graph(file, module, options, blocks, target.sm, tell)
            built = build(module, data, file.manifest.input.name, blocks, options, target.sm, tell)
            (folder / name).write_bytes(built.data)
            files.append(engine_file(folder / name, built.seconds, built.kernels))
            span = options.calls.range
            profiles.extend(Profile(name, index, block, span) for index, block in enumerate(blocks))
        return _record(file, target, module, options, plugin_version, profiles, files)

    return write_folder(output, make, file.manifest, file.golden)


def _engines(options: Options) -> list[tuple[str, tuple[int, ...]]]:
    """Names of the engines to build, and the blocks of each."""
    blocks = options.calls.blocks
    if options.plugins or len(blocks) == 1:
        return [("model.engine", blocks)]
    return [(f"model.b{block}.engine", (block,)) for block in blocks]


def _no_products(module: Any, sm: int) -> bool:
    """Whether the library has no float32 products for a GPU, as TensorRT-RTX has none for Turing."""
    return module.__name__ == "tensorrt_rtx" and sm == 75


def _graph(
    file: ModelFile, module: Any, options: Options, blocks: Sequence[int], sm: int, tell: Progress
) -> bytes:
    """The model as this engine's ONNX, compared with the model itself where it can run without plugins."""
    batch = 1 if options.calls.batch == 1 else None
    block = None if options.plugins else blocks[0]
    tell("reading the model", 0, 1)
    data = to_dialect(
        file,
        module.__version__,
        options.plugins,
        precision=options.precision,
        block=block,
        batch=batch,
        products=not _no_products(module, sm),
    )
    if options.verify and block is not None:
        from streamssm.tensorrt.lowering_check import check_graph

        tell(f"comparing the graph for blocks of {block} with the model", 0, 1)
        check_graph(file, data, options.precision, block)
    return data


def _record(
    file: ModelFile,
    target: Target,
    module: Any,
    options: Options,
    plugin_version: str,
    profiles: Sequence[Profile],
    files: Sequence[EngineFile],
) -> EngineRecord:
    from importlib.metadata import version

    manifest = file.manifest
    return EngineRecord(
        format=FORMAT,
        name=manifest.name,
        target=target.name,
        kind=target.kind,
        version=module.__version__,
        sm=target.sm,
        precision=options.precision,
        plugins=options.plugins,
        plugin_version=plugin_version,
        profiles=tuple(profiles),
        engines=tuple(files),
        input=manifest.input.name,
        outputs=tuple(output.name for output in manifest.outputs),
        states=bound_states(manifest),
        model_sha256=manifest.sha256,
        source=source_of(file.path),
        producer=f"streamssm {version('streamssm')}",
    )


def build(
    module: Any,
    data: bytes,
    input_name: str,
    blocks: Sequence[int],
    options: Options,
    sm: int,
    progress: Progress,
) -> Built:
    """Compile ONNX bytes to an engine for one kind of GPU.

    Raises:
        BackendError: the library has nothing for this GPU, or finds none where it needs one.
        ExportError: it cannot compile the graph; says its own words.
    """
    log, monitor = logger(module), progress_monitor(module, progress)
    with stopped_by_interrupt(monitor):
        builder = _builder(module, log)
        network = builder.create_network(_strongly_typed(module))
        parser = module.OnnxParser(network, log)
        if not parser.parse(data):
            said = f"{module.__name__} {module.__version__} cannot read the graph: {_faults(parser)}"
            raise ExportError(said)
        config = _configured(module, builder, sm)
        _add_profiles(builder, config, network, input_name, blocks, options.calls)
        config.progress_monitor = monitor
        cache = _open_cache(module, config, options.timing_cache)
        began = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - began
    if plan is None:
        raise ExportError(
            f"{module.__name__} {module.__version__} cannot compile the graph for sm_{sm}: "
            f"{log.last or 'it does not say why'}{_needs_gpu(module)}"
        )
    if cache is not None and options.timing_cache is not None:
        _write_cache(options.timing_cache, config)
    return Built(bytes(plan), seconds, log.kernels)


def _builder(module: Any, log: Any) -> Any:
    try:
        return module.Builder(log)
    except (TypeError, RuntimeError) as error:
        raise BackendError(
            f"{module.__name__} cannot build here: {log.last or error}{_needs_gpu(module)}"
        ) from error


def _configured(module: Any, builder: Any, sm: int) -> Any:
    """How to compile for this GPU."""
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    # the log says which kernels there are; engines are the same
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    _aim(module, config, sm)
    return config


def _needs_gpu(module: Any) -> str:
    if module.__name__ == "tensorrt_rtx":
        return ""
    return "; TensorRT builds only on a machine with the GPU: build a bundle there, with a named --target"


def _strongly_typed(module: Any) -> int:
    """The flag that asks for it; from TensorRT 11 on there is nothing else."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _aim(module: Any, config: Any, sm: int) -> None:
    """Say which GPU the engine is for: TensorRT-RTX compiles for any that it knows, TensorRT for its own."""
    if module.__name__ != "tensorrt_rtx":
        return
    known = {
        name: value for name, value in module.ComputeCapability.__members__.items() if name.startswith("SM")
    }
    if f"SM{sm}" not in known:
        there = ", ".join(f"sm_{name[2:]}" for name in known)
        raise BackendError(f"TensorRT-RTX {module.__version__} has nothing for sm_{sm}; there are {there}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[f"SM{sm}"], 0)


def _add_profiles(
    builder: Any, config: Any, network: Any, data: str, blocks: Sequence[int], calls: Calls
) -> None:
    """One optimisation profile for each block, if anything is left open."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    inputs: Mapping[str, tuple[int, ...]] = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    if not any(-1 in dims for dims in inputs.values()):
        return
    for block in blocks:
        profile = builder.create_optimization_profile()
        spans = [shapes_of(inputs, data, block, batch) for batch in calls.range]
        for name in inputs:
            profile.set_shape(name, *(span[name] for span in spans))
        config.add_optimization_profile(profile)


def _faults(parser: Any) -> str:
    """What the parser says, of the first node that it could not read."""
    faults = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"{fault.node_operator()} {fault.node_name()}: {fault.desc()}" for fault in faults[:2]]
    return "; ".join(said) or "no reason given"


def _open_cache(module: Any, config: Any, path: Path | None) -> Any:
    """The timing cache, with what was measured before; an empty one for what the library cannot read.

    Raises:
        OutputError: it could not be written after the build.
    """
    if path is None or module.__name__ == "tensorrt_rtx":
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.is_file() else b""
        write_bytes(path, data)
    except OSError as error:
        raise OutputError(f"the timing cache {path} cannot be used: {error.strerror or error}") from error
    cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _write_cache(path: Path, config: Any) -> None:
    write_bytes(path, bytes(config.get_timing_cache().serialize()))


def default_cache(target: Target, version: str) -> Path:
    """Where timings are kept by default: by version and kind of GPU, in the user's cache folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "streamssm" / f"timing-{version}-sm{target.sm}.cache"
