"""ONNX Runtime on a CUDA GPU: the session, and when a GPU can be used. What streams own of it is in
``cuda_lanes.py``. All streams of a model share one CUDA stream and run one after another."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from streamssm import golden
from streamssm.backends import Array
from streamssm.backends.cpu import FOLDER, import_onnxruntime, one_line
from streamssm.backends.cuda_lanes import CudaLane, CudaSlots, RuntimeCore
from streamssm.backends.cuda_library import CudaKernels, KeepRows, choose
from streamssm.backends.cudart import Queue, cudart
from streamssm.backends.requirements import check_version, maps_tensors
from streamssm.backends.signature import Port, check_signature
from streamssm.errors import BackendError
from streamssm.native import Kernels, Loan
from streamssm.native.graph import graph_of
from streamssm.native.stacks import stack_graph
from streamssm.onnx_file import ModelFile

#: ``off`` runs every step without CUDA graphs
GRAPHS = "STREAMSSM_CUDA_GRAPHS"
_INSTALL = "pip uninstall onnxruntime, then pip install --force-reinstall --no-deps onnxruntime-gpu"
_PROVIDER = "CUDAExecutionProvider"


@cache
def unavailable() -> str | None:
    """Why no GPU can be used, or None; looked for once."""
    try:
        runtime = import_onnxruntime()
        if _PROVIDER not in runtime.get_available_providers():
            return f"onnxruntime {runtime.__version__} has no CUDA provider; {_INSTALL}"
        _load_provider(runtime)
        return None if cudart().devices() else "there is no NVIDIA GPU"
    except BackendError as error:
        return str(error)


@cache
def usable() -> bool:
    """Whether a GPU can be used, for whoever can do without. If onnxruntime is there for one, and it
    cannot, that is said once."""
    reason = unavailable()
    if reason is not None and _PROVIDER in import_onnxruntime().get_available_providers():
        logging.getLogger("streamssm").warning("the GPU is not used: %s", reason)
    return reason is None


def _load_provider(runtime: Any) -> None:
    """Bring the libraries into the process that the provider needs: ONNX Runtime itself would only
    print that they are missing.

    Raises:
        BackendError: one of them cannot be loaded.
    """
    preload = getattr(runtime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
            preload()
    folder = Path(runtime.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):
            ctypes.CDLL(os.fspath(folder / f"libonnxruntime_providers_{name}.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BackendError(
            f"the CUDA provider of onnxruntime {runtime.__version__} cannot be loaded ({one_line(error)}); "
            "install what it names, or onnxruntime-gpu[cuda,cudnn] with all of it"
        ) from error


class CudaBackend:
    """One session and one CUDA stream, shared by all streams of a model."""

    name = "cuda"
    blocks = None
    most_rows = None

    def __init__(self, file: ModelFile, precision: str = "float32") -> None:
        """Open a model; ``precision`` is what the matrices of its Mamba and Mamba-2 blocks are rounded to.

        Raises:
            BackendError: there is no GPU to use, the model cannot run on it, or it has nothing that
                ``precision`` could apply to.
        """
        reason = unavailable()
        if reason is not None:
            raise BackendError(f"the GPU cannot be used: {reason}; or choose backend='cpu'")
        self.manifest = file.manifest
        self.runtime = import_onnxruntime()
        check_version(file.path, file.manifest, self.runtime.__version__)
        self.queue, self.lock = Queue(), threading.Lock()
        self.session, self.kernels = self._open(file, precision)
        library = self.kernels.library
        self.keep_rows = None if library is None else KeepRows(library.path)
        self.graphs = os.environ.get(GRAPHS, "on") != "off"
        self.no_wait = self.runtime.RunOptions()
        self.no_wait.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.no_wait.log_severity_level = 4
        file.check_unchanged()  # what was hashed is what was opened
        check_signature(
            file.path,
            file.manifest,
            [Port(port.name, port.type, tuple(port.shape)) for port in self.session.get_inputs()],
            [Port(port.name, port.type, tuple(port.shape)) for port in self.session.get_outputs()],
        )
        if precision != "float32":
            self._check_range(file, precision)

    def lane(self, block: int, batch: int, in_place: bool = False) -> CudaLane:
        """Buffers for one stream, its state at zero."""
        return CudaLane(self, block, batch)

    def slots(self, block: int, count: int) -> CudaSlots:
        """States at zero for ``count`` streams that are run together."""
        return CudaSlots(self, block, count)

    def core(self, rows: int) -> RuntimeCore:
        """States and bindings of so many rows."""
        return RuntimeCore(self, rows)

    def without_graphs(self, error: Exception) -> None:
        """Go on without CUDA graphs, and say so."""
        self.graphs = False
        logging.getLogger("streamssm").warning(
            "%s runs without CUDA graphs, more slowly: %s", self.manifest.name, one_line(error)
        )

    def _check_range(self, file: ModelFile, precision: str) -> None:
        """Refuse a precision in which the file's own sample is too large somewhere between its layers."""
        if file.golden is None:
            return
        x, _ = golden.decode(file.golden, file.manifest)
        lane = self.lane(len(x), 1)
        lane.x[0] = x
        lane.step()
        if not all(np.isfinite(y).all() for y in lane.y):
            others = "'bfloat16' or 'float32'" if precision == "float16" else "'float32'"
            raise BackendError(
                f"{file.manifest.name} cannot run in {precision}: the sample in the file makes values "
                f"between its layers that do not fit; load with precision={others}"
            )

    def _open(self, file: ModelFile, precision: str) -> tuple[Any, CudaKernels]:
        """A session, and the kernels it runs on: ours where they serve the whole model."""
        kernels = choose(file.op_counts)
        if kernels.library is not None and kernels.fused:
            session, why = self._open_fused(file, kernels, precision)
            if session is not None:
                return session, replace(kernels, precision=precision)
            kernels = replace(kernels, fused=False, reason=why)
        if precision != "float32":
            raise BackendError(
                f"{file.manifest.name} cannot run in {precision}: "
                f"{kernels.reason or 'whole blocks are switched off'}; leave out precision"
            )
        if kernels.library is not None:
            try:
                return self._start(file, kernels, None), kernels
            except Exception as error:  # such as a GPU that there is no code for
                kernels = CudaKernels(None, f"they cannot run it ({one_line(error)})")
                logging.getLogger("streamssm").warning("%s: %s", file.manifest.name, kernels.reason)
        try:
            return self._start(file, kernels, None), kernels
        except Exception as error:
            file.check_unchanged()
            raise BackendError(
                f"onnxruntime {self.runtime.__version__} cannot open {file.path} on a GPU: {one_line(error)}"
            ) from error

    def _open_fused(self, file: ModelFile, kernels: CudaKernels, precision: str) -> tuple[Any, str]:
        """A session on the model with its blocks fused, or None and why there is none."""
        loans: list[Loan] = []  # until the library has copied them
        assert kernels.library is not None
        library = kernels.library

        def lend(weights: Array) -> int:
            loans.append(Loan(library, weights))
            return loans[-1].number

        given = file.manifest.input
        try:
            graph = graph_of(file, maps_tensors(self.runtime.__version__))
            stacked = stack_graph(graph, precision, (given.name, given.vocabulary), lend)
            if stacked is None:
                return None, "it has no Mamba or Mamba-2 blocks of the usual form in float32"
            return self._start(file, kernels, stacked.model), ""
        except BackendError:  # a weight that does not fit the precision
            raise
        except Exception as error:  # such as sizes that the kernels do not take, or a graph of another form
            return None, f"its blocks cannot be fused ({one_line(error)})"

    def _start(self, file: ModelFile, kernels: Kernels, model: bytes | None) -> Any:
        """A session on ``model``, which refers to tensors in the file and those beside it, or on the file."""
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # every failure is raised, with its text
        if kernels.library is not None:
            options.register_custom_ops_library(os.fspath(kernels.library.path))
        options.add_session_config_entry(FOLDER, os.path.dirname(os.path.realpath(file.path)))
        provider = {
            "user_compute_stream": str(self.queue.number),
            "use_tf32": "0",  # float32 products are float32 products
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # a search would choose anew in every process
        }
        session = self.runtime.InferenceSession(
            os.fspath(file.path) if model is None else model,
            options,
            providers=[(_PROVIDER, provider), "CPUExecutionProvider"],
            enable_fallback=0,  # it prints to stdout, which is for data
            read_config_from_model=0,  # a model does not set our options
        )
        if session.get_providers()[0] != _PROVIDER:
            raise BackendError("onnxruntime left the GPU out and does not say why")
        return session
