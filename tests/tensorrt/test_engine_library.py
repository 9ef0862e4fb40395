"""What runs engines for a Python that TensorRT has no module for."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from standins import HERE, SM, build_cuda, use_cuda, write_engine

import streamssm
from streamssm.errors import BackendError
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt import engine_library, local

SOURCE = Path(__file__).resolve().parents[2] / "kernels" / "tensorrt" / "engine" / "engine.cpp"


class OverStandIn(engine_library.EngineLibrary):
    """The library's functions, answered by the stand-in for TensorRT."""

    def __init__(self, module) -> None:
        self.module, self.objects, self.said = module, [], ""
        names = [name for name in engine_library._FUNCTIONS if hasattr(self, f"_{name}")]
        self.functions = {name: getattr(self, f"_{name}") for name in names}
        number = int(self.call("engine_tensorrt"))
        self.__version__ = f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def _keep(self, one) -> int:
        self.objects.append(one)
        return len(self.objects)

    def _of(self, handle):
        return self.objects[handle - 1]

    def _engine_tensorrt(self):
        return 101601

    def _engine_error(self):
        return self.said.encode()

    def _engine_open(self, data, size):
        logger = self.module.Logger()
        # the stand-in writes its full version into engines
        engine = self.module.Runtime(logger).deserialize_cuda_engine(data[:size])
        self.said = " ".join(logger.lines)
        return self._keep(engine) if engine else None

    def _engine_close(self, handle):
        self.objects[handle - 1] = None

    _context_close = _engine_close

    def _engine_memory(self, handle):
        return self._of(handle).device_memory_size_v2

    def _engine_tensors(self, handle):
        return self._of(handle).num_io_tensors

    def _engine_tensor(self, handle, index):
        return self._of(handle).get_tensor_name(index).encode()

    def _engine_mode(self, handle, name):
        return self._of(handle).get_tensor_mode(name.decode()).value

    def _engine_dtype(self, handle, name):
        return self._of(handle).get_tensor_dtype(name.decode()).value

    def _engine_dims(self, handle, name, dims):
        shape = self._of(handle).get_tensor_shape(name.decode())
        dims[: len(shape)] = shape
        return len(shape)

    def _engine_context(self, handle):
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._keep(self._of(handle).create_execution_context(strategy))

    def _context_memory(self, handle, memory, size):
        self._of(handle).set_device_memory(memory, size)

    def _context_profile(self, handle, index, stream):
        return self._of(handle).set_optimization_profile_async(index, stream)

    def _context_shape(self, handle, name, dims, count):
        return self._of(handle).set_input_shape(name.decode(), tuple(dims[:count]))

    def _context_address(self, handle, name, address):
        return self._of(handle).set_tensor_address(name.decode(), address)

    def _context_run(self, handle, stream):
        return self._of(handle).execute_async_v3(stream)


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    return build_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def folder(monkeypatch, cuda, tmp_path):
    """An engine folder on a machine whose Python has no TensorRT, but the library."""
    monkeypatch.setenv("STANDIN_CUDA", str(cuda))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(local, "compute_capability", lambda: SM)
    use_cuda(monkeypatch, cuda)
    spec = importlib.util.spec_from_file_location("standin", HERE / "tensorrt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    from streamssm.backends import tensorrt as backend

    monkeypatch.setattr(backend, "find_library", lambda: Path("libstreamssm_engine.so"))
    monkeypatch.setattr(backend, "EngineLibrary", lambda path: OverStandIn(module))
    file = read_model_file(streamssm.load("vad", backend="cpu").path)
    return write_engine(tmp_path / "vad.orin-nano", file, module, [160])


def test_streams_run_through_it(folder):
    model = streamssm.load(folder)
    assert model.kernels == "TensorRT 10.16.1 (plain operators)"
    x = (0.3 * np.random.default_rng(0).standard_normal(9000)).astype(np.float32)
    np.testing.assert_allclose(model.scan(x), streamssm.load("vad", backend="cpu").scan(x), atol=1e-5)


def test_its_errors_are_those_of_tensorrt(folder):
    import msgspec

    from streamssm.tensorrt.folder import RECORD, engine_file

    path = folder / "model.engine"
    path.write_bytes(b"not an engine")
    record = msgspec.json.decode((folder / RECORD).read_bytes())
    record["engines"] = [msgspec.to_builtins(engine_file(path, 1.0))]
    (folder / RECORD).write_bytes(msgspec.json.encode(record))
    with pytest.raises(BackendError, match=r"does not take .*magic tag does not match"):
        streamssm.load(folder)


def test_a_library_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(engine_library.PATH, str(tmp_path / "none.so"))
    assert engine_library.find_library() == tmp_path / "none.so"
    with pytest.raises(BackendError, match=r"none.so cannot be loaded .*; build it: sh build.sh in a bundle"):
        engine_library.EngineLibrary(tmp_path / "none.so")


def test_both_sides_name_the_same_functions():
    named = set(re.findall(r"STREAMSSM_ENGINE_API [\w* ]*?[ *](\w+)\(", SOURCE.read_text()))
    assert named == set(engine_library._FUNCTIONS)


def headers() -> Path | None:
    """Headers of TensorRT, as kernels/tensorrt/fetch.sh leaves them."""
    root = Path(os.environ.get("STREAMSSM_TENSORRT_FETCHED", SOURCE.parents[3] / ".cache" / "tensorrt"))
    return next((path.parent for path in sorted(root.glob("**/NvInferRuntime.h"))), None)


def lean(version: int) -> Path | None:
    """A lean runtime of TensorRT, as the same script leaves it."""
    root = Path(os.environ.get("STREAMSSM_TENSORRT_FETCHED", SOURCE.parents[3] / ".cache" / "tensorrt"))
    found = sorted(
        path for path in root.glob(f"**/libnvinfer_lean.so.{version}") if "aarch64" not in str(path)
    )
    return found[0] if found else None


def test_it_compiles_and_meets_a_real_tensorrt(tmp_path):
    """Against TensorRT's headers, warnings as errors; then in a process with the lean runtime, which needs
    no GPU to say its version, to look into its registry and to refuse what is no engine."""
    include, compiler = headers(), shutil.which("g++")
    cuda_include = next((p for p in Path("/usr/local").glob("cuda*/include") if p.is_dir()), None)
    if include is None or compiler is None or cuda_include is None:
        pytest.skip("needs g++, CUDA's headers, and sh kernels/tensorrt/fetch.sh")
    library = tmp_path / "libstreamssm_engine.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    system = ["-isystem", str(include), "-isystem", str(cuda_include)]
    subprocess.run([compiler, *flags, *system, str(SOURCE), "-o", str(library)], check=True)
    runtime = lean(int(re.search(r"MAJOR_ENTERPRISE +(\d+)", (include / "NvInferVersion.h").read_text())[1]))
    if runtime is None:
        pytest.skip("compiled; no lean runtime of this version")
    code = f"""
import ctypes
ctypes.CDLL({str(runtime)!r}, mode=ctypes.RTLD_GLOBAL)
from streamssm.tensorrt.engine_library import EngineLibrary, ILogger
from pathlib import Path
library = EngineLibrary(Path({str(library)!r}))
print(library.__version__)
print(library.get_plugin_registry().get_creator("SelectiveScan", "1", "streamssm"))
class Log:
    def log(self, severity, text): print("refused:", bool(text))
print(library.Runtime(Log()).deserialize_cuda_engine(b"not an engine"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"1\d\.\d+\.\d+", lines[0]), done.stderr
    assert lines[1] == "None"
    assert lines[-1] == "None"


def test_ctypes_agrees_with_the_number_of_arguments():
    text = SOURCE.read_text()
    for name, (arguments, _) in engine_library._FUNCTIONS.items():
        inside = re.search(rf"\b{name}\(([^)]*)\)", text)[1].strip()
        assert len(arguments) == (inside.count(",") + 1 if inside else 0), name
    assert ctypes.sizeof(ctypes.c_void_p) == 8
