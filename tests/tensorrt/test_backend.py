"""``backend="tensorrt"`` over stand-ins for CUDA and TensorRT: streams, pools, graphs, snapshots, refusals.

What a stand-in cannot show is that TensorRT computes the model: that is what the parity check is for, on the
device itself. Here it is shown that streams keep their promises over any engine that does.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import logging
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from standins import HERE, SM, build_cuda, use_cuda, write_engine

import streamssm
from streamssm.backends.cuda_library import KeepRows
from streamssm.checks import run_checks
from streamssm.errors import BackendError, IntegrityError, ManifestError, ModelFileError, UsageError
from streamssm.manifest import StateTensor
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt import local
from streamssm.tensorrt.plugins import PluginLibrary

BLOCK = 160


@pytest.fixture(scope="module")
def cuda(tmp_path_factory) -> Path:
    return build_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def trt(monkeypatch, cuda, tmp_path):
    """The stand-ins in place, the parity cache empty."""
    monkeypatch.setenv("STANDIN_CUDA", str(cuda))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(local, "compute_capability", lambda: SM)
    use_cuda(monkeypatch, cuda)
    module = load_module("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def load_module(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file():
    return read_model_file(streamssm.load("vad", backend="cpu").path)


@pytest.fixture
def folder(trt, file, tmp_path):
    return write_engine(tmp_path / "vad.orin-nano", file, trt, [BLOCK, 4 * BLOCK])


@pytest.fixture
def model(folder):
    return streamssm.load(folder)


@pytest.fixture
def x():
    return (0.3 * np.random.default_rng(0).standard_normal(40 * BLOCK + 37)).astype(np.float32)


def pushed(stream, x, cuts):
    pairs = itertools.pairwise([0, *sorted(cuts), len(x)])
    return np.concatenate([*(stream.push(x[a:b]) for a, b in pairs), stream.flush()])


def test_it_opens_by_name_and_by_backend(folder):
    for backend in ("auto", "tensorrt"):
        model = streamssm.load(folder, backend=backend)
        assert model.backend.name == "tensorrt"
        assert model.kernels == "TensorRT 10.16.1.11 (plain operators)"
        assert model.manifest.name == "vad"
    assert model.sha256 == streamssm.load("vad", backend="cpu").sha256


def test_it_agrees_with_the_processor(model, x):
    np.testing.assert_allclose(model.scan(x), streamssm.load("vad", backend="cpu").scan(x), atol=1e-5)


@pytest.mark.parametrize("block", [BLOCK, 4 * BLOCK])
def test_any_split_gives_the_same_bytes(model, x, block):
    whole = model.scan(x, block).tobytes()
    for seed in range(4):
        cuts = np.random.default_rng(seed).integers(0, len(x) + 1, 9).tolist()
        assert pushed(model.stream(block), x, cuts).tobytes() == whole


def test_the_promise_is_kept(model):
    found = {check.name: check for check in run_checks(model, items=12 * BLOCK, splits=6, seed=1)}
    assert {check.verdict for check in found.values()} == {"pass"}
    assert "blocks [640]" in found["block sizes"].detail


def test_the_promise_of_an_engine_for_one_block_and_one_sequence(trt, file, tmp_path):
    model = streamssm.load(write_engine(tmp_path / "vad.one", file, trt, [BLOCK], batch=1))
    found = {check.name: check for check in run_checks(model, items=12 * BLOCK, splits=6, seed=1)}
    skipped = {name for name, check in found.items() if check.verdict == "skip"}
    assert skipped == {"block sizes", "batch"}
    assert {check.verdict for name, check in found.items() if name not in skipped} == {"pass"}
    assert "blocks of 160 alone" in found["block sizes"].detail


def test_the_promise_of_an_engine_in_half_precision(trt, file, tmp_path, monkeypatch):
    """It is judged by what its products are rounded to, as at load."""
    monkeypatch.setenv("STANDIN_FAULT", "1.00002")
    folder = write_engine(tmp_path / "vad.half", file, trt, [BLOCK], precision="fp16")
    found = {check.name: check for check in run_checks(streamssm.load(folder), items=12 * BLOCK, splits=2)}
    assert found["golden vectors"].verdict == "pass"
    whole = write_engine(tmp_path / "vad.whole", file, trt, [BLOCK])
    found = {check.name: check for check in run_checks(streamssm.load(whole), items=12 * BLOCK, splits=2)}
    assert found["golden vectors"].verdict == "fail"


def test_steps_become_graphs_and_they_change_no_byte(folder, x, monkeypatch):
    with_graphs = streamssm.load(folder)
    stream = with_graphs.stream()
    got = pushed(stream, x, [])
    assert all(stream._lane._step._graphs)
    monkeypatch.setenv("STREAMSSM_CUDA_GRAPHS", "off")
    without = streamssm.load(folder)
    assert not without.backend.graphs
    assert pushed(without.stream(), x, []).tobytes() == got.tobytes()


def test_an_engine_that_cannot_be_captured_runs_without(folder, x, monkeypatch, trt, caplog):
    monkeypatch.setattr(trt.Context, "is_stream_capturable", lambda self, stream: False, raising=False)
    model = streamssm.load(folder)
    with caplog.at_level(logging.WARNING, "streamssm"):
        got = model.scan(x)
    assert "cannot be captured" in caplog.text
    assert not model.backend.graphs
    np.testing.assert_allclose(got, streamssm.load("vad", backend="cpu").scan(x), atol=1e-5)


def test_a_batch_runs_in_step(model, x):
    rows = np.stack([x, x[::-1].copy(), np.zeros_like(x)])
    together = model.scan(rows)
    for row, alone in zip(together, rows, strict=True):
        np.testing.assert_allclose(row, model.scan(alone), atol=1e-5)


def test_pools_serve_streams_apart(model, x):
    keys = ["a", "b", "c"]
    cuts = {"a": 500, "b": 777, "c": 1601}
    got = {key: [] for key in keys}
    with model.pool(slots=4) as pool:
        for key in keys:
            pool.open(key)
        places = dict.fromkeys(keys, 0)
        while any(place < len(x) for place in places.values()):
            for key in keys:
                pool.push(key, x[places[key] : places[key] + cuts[key]])
                places[key] += cuts[key]
            for key, y in pool.step():
                got[key].append(y)
        for key in keys:
            pool.flush(key)
        while any(key in pool for key in keys):
            for key, y in pool.step():
                got[key].append(y)
    whole = model.scan(x)
    for key in keys:
        np.testing.assert_allclose(np.concatenate(got[key]), whole, atol=1e-5)


def in_turns(model, x, seed):
    """What three streams of a pool get that are fed one or two at a time."""
    rng, got = np.random.default_rng(seed), {key: [] for key in "abc"}
    places = dict.fromkeys("abc", 0)
    with model.pool(slots=4) as pool:
        for key in "abc":
            pool.open(key)
        while any(place < len(x) for place in places.values()):
            for key in rng.choice(list("abc"), size=rng.integers(1, 3), replace=False):
                pool.push(key, x[places[key] : places[key] + BLOCK])
                places[key] += BLOCK
            for key, y in pool.step():
                got[key].append(y)
    return {key: np.concatenate(parts) for key, parts in got.items()}


def test_rows_that_wait_keep_their_states_in_graphs_too(folder, x, cuda):
    without, model = streamssm.load(folder), streamssm.load(folder)
    without.backend.keep_rows, model.backend.keep_rows = None, KeepRows(cuda)
    x = x[: 38 * BLOCK]
    wanted, whole = in_turns(without, x, 5), model.scan(x)
    for key, y in in_turns(model, x, 5).items():
        assert y.tobytes() == wanted[key].tobytes()
        np.testing.assert_allclose(y, whole[: len(y)], atol=1e-5)


def test_the_kernel_that_keeps_rows_is_found_in_the_plugins(cuda, monkeypatch):
    from streamssm.backends import cuda_library
    from streamssm.backends.tensorrt import _keep_rows

    monkeypatch.setattr(cuda_library, "library", lambda: "there is none")
    plugins = PluginLibrary(cuda, "0.1.0", "10.16.1", "87", "1", ())
    assert isinstance(_keep_rows(plugins), KeepRows)
    assert _keep_rows(dataclasses.replace(plugins, path=HERE / "cuda.cpp")) is None
    assert _keep_rows(None) is None


def test_snapshots_cross_to_the_processor_and_back(model, x):
    cpu = streamssm.load("vad", backend="cpu")
    for first, second in ((model, cpu), (cpu, model)):
        stream = first.stream()
        head = stream.push(x[:3000])
        tail = second.resume(stream.snapshot())
        got = np.concatenate([head, tail.push(x[3000:]), tail.flush()])
        np.testing.assert_allclose(got, cpu.scan(x), atol=1e-5)


def test_forks_and_resets(model, x):
    stream = model.stream()
    stream.push(x[:1000])
    twin = stream.fork()
    assert stream.push(x[1000:5000]).tobytes() == twin.push(x[1000:5000]).tobytes()
    stream.reset()
    assert pushed(stream, x, []).tobytes() == model.scan(x).tobytes()


def test_a_step_that_fails_leaves_the_stream_as_it_was(model, x, trt, monkeypatch):
    stream, twin = model.stream(), model.stream()
    for one in (stream, twin):
        one.push(x[:BLOCK])
    with monkeypatch.context() as broken:
        broken.setattr(trt.Context, "execute_async_v3", lambda self, stream: False)
        with pytest.raises(BackendError, match="TensorRT gives no reason; the stream is as it was"):
            stream.push(x[BLOCK : 2 * BLOCK])
    assert stream.position == BLOCK
    assert stream.push(x[BLOCK : 4 * BLOCK]).tobytes() == twin.push(x[BLOCK : 4 * BLOCK]).tobytes()


def test_contexts_share_memory_and_go_with_their_lane(model, x):
    backend = model.backend
    engine = backend.engine("model.engine")
    streams = [model.stream() for _ in range(3)]
    for stream in streams:
        stream.push(x[: 4 * BLOCK])
        contexts = stream._lane._core._contexts.values()
        assert len(contexts) == 2  # one for each side
        assert {context.memory for context in contexts} == {engine.memory.address}


# The parity check.


def test_a_wrong_engine_is_refused_with_the_numbers(folder, monkeypatch):
    monkeypatch.setenv("STANDIN_FAULT", "1.5")
    with pytest.raises(BackendError) as caught:
        streamssm.load(folder)
    text = str(caught.value)
    assert "is wrong on this device" in text
    assert "speech differs by" in text
    assert "0.001 is allowed" in text
    assert "streamssm export vad.onnx --format tensorrt --target local" in text


def test_what_has_passed_is_not_run_again(folder, monkeypatch, tmp_path):
    from streamssm.tensorrt import verify

    streamssm.load(folder)
    (kept,) = (tmp_path / "cache" / "streamssm" / "parity").iterdir()
    found = msgspec.json.decode(kept.read_bytes(), type=tuple[verify.Parity, ...])
    assert {one.block for one in found} == {BLOCK, 4 * BLOCK}
    assert all(one.max_rel < 1e-4 for one in found)
    monkeypatch.setattr(verify, "compare", lambda backend: pytest.fail("compared again"))
    streamssm.load(folder)
    monkeypatch.setenv(verify.PARITY, "always")
    with pytest.raises(pytest.fail.Exception):
        streamssm.load(folder)


def test_it_is_run_again_with_other_plugins_graphs_or_gpu(folder, monkeypatch, cuda, tmp_path):
    from streamssm.tensorrt import verify

    def places() -> int:
        return len(list((tmp_path / "cache" / "streamssm" / "parity").iterdir()))

    backend = streamssm.load(folder).backend
    assert places() == 1
    monkeypatch.setenv("STREAMSSM_CUDA_GRAPHS", "off")
    streamssm.load(folder)
    assert places() == 2
    monkeypatch.setattr(verify, "device_name", lambda: "another Orin")
    streamssm.load(folder)
    assert places() == 3
    library = tmp_path / "plugins.so"
    library.write_bytes(b"one")
    backend.plugins = PluginLibrary(library, "0.1.0", "10.16.1", "87", "1", ())
    first = verify._place(backend)
    library.write_bytes(b"another")
    assert verify._place(backend) != first


def test_rows_that_are_mixed_up_are_found(folder, trt, monkeypatch):
    """A fault that one sequence alone does not show."""
    run = trt.Context._run

    def mixes(self):
        run(self)
        rows, items = self.shapes["samples"]
        y = self._view("speech", (rows, items // BLOCK, 1))
        y[...] = y[:1]

    monkeypatch.setattr(trt.Context, "_run", mixes)
    with pytest.raises(BackendError, match=r"is wrong on this device: .* of 4 comparisons failed"):
        streamssm.load(folder)


def test_a_failure_is_not_remembered(folder, monkeypatch):
    monkeypatch.setenv("STANDIN_FAULT", "nan")
    for _ in range(2):
        with pytest.raises(BackendError, match="is wrong on this device"):
            streamssm.load(folder)
    monkeypatch.setenv("STANDIN_FAULT", "1")
    streamssm.load(folder)


def test_without_golden_vectors_it_says_that_it_did_not_look(trt, file, tmp_path, caplog):
    bare = dataclasses.replace(file, golden=None)
    folder = write_engine(tmp_path / "vad.bare", bare, trt, [BLOCK])
    with caplog.at_level(logging.WARNING, "streamssm"):
        streamssm.load(folder)
    assert "has no golden vectors" in caplog.text


# Refusals.


def refusal(folder, error=BackendError, **load) -> str:
    with pytest.raises(error) as caught:
        streamssm.load(folder, **load)
    return str(caught.value)


def test_another_gpu(folder, monkeypatch):
    monkeypatch.setattr(local, "compute_capability", lambda: 110)
    text = refusal(folder)
    assert "was built for sm_87 (orin-nano), this GPU is sm_110" in text
    assert "--target local" in text


def test_no_gpu(folder, monkeypatch):
    monkeypatch.setattr(local, "compute_capability", lambda: None)
    assert "this machine has none" in refusal(folder)
    assert "streamssm run vad.onnx --backend cpu" in refusal(folder)


def test_another_version(folder, monkeypatch, trt):
    monkeypatch.setattr(trt, "__version__", "11.4.1.2")
    text = refusal(folder)
    assert "built by TensorRT 10.16.1.11, 11.4.1.2 is installed" in text
    assert "pip install tensorrt==10.16.1.11" in text


def test_a_patch_that_tensorrt_itself_refuses(folder, monkeypatch, trt):
    monkeypatch.setattr(trt, "__version__", "10.16.9")
    text = refusal(folder)
    assert "TensorRT 10.16.9 does not take" in text
    assert "engine of version 10.16.1.11, this is 10.16.9" in text


def test_no_tensorrt(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = refusal(folder)
    assert "pip install 'streamssm[tensorrt]'" in text
    assert "python3-libnvinfer" in text


def test_no_tensorrt_rtx(trt, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    folder = write_engine(tmp_path / "v.rtx-40", file, trt, [BLOCK], kind="tensorrt_rtx", target="rtx-40")
    assert "pip install 'streamssm[rtx]'" in refusal(folder)


@pytest.fixture
def rtx(trt, monkeypatch):
    module = load_module("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr(local, "compute_capability", lambda: 89)
    return module


@pytest.fixture
def rtx_folder(rtx, file, tmp_path):
    changes = {"kind": "tensorrt_rtx", "target": "rtx-40", "sm": 89}
    return write_engine(tmp_path / "vad.rtx-40", file, rtx, [BLOCK], **changes)


def test_tensorrt_rtx_runs_its_engines(rtx_folder, x):
    model = streamssm.load(rtx_folder)
    assert model.kernels == "TensorRT-RTX 10.16.1.11 (plain operators)"
    np.testing.assert_allclose(model.scan(x), streamssm.load("vad", backend="cpu").scan(x), atol=1e-5)


def test_tensorrt_rtx_changes_no_kernel_in_the_middle_of_a_stream(rtx_folder, rtx, x):
    streamssm.load(rtx_folder).scan(x)
    (config,) = rtx.RuntimeConfig.configs
    assert len(config.used) >= 2
    assert set(config.used) == {rtx.DynamicShapesKernelSpecializationStrategy.EAGER}


def test_what_tensorrt_rtx_compiles_is_kept(rtx_folder, rtx, tmp_path, monkeypatch):
    streamssm.load(rtx_folder)
    (kept,) = (tmp_path / "cache" / "streamssm" / "rtx").iterdir()
    assert kept.read_bytes() == b"10.16.1.11 2"
    streamssm.load(rtx_folder)
    assert rtx.RuntimeConfig.configs[-1].cache.compiled == 2  # from the file: nothing was run
    kept.write_bytes(b"1.0 99")
    streamssm.load(rtx_folder)
    assert rtx.RuntimeConfig.configs[-1].cache.compiled == 0


def test_missing_plugins(trt, file, tmp_path, monkeypatch):
    folder = write_engine(tmp_path / "vad.p", file, trt, [BLOCK], plugins=True, plugin_version="0.1.0")
    monkeypatch.setenv("STREAMSSM_TENSORRT_PLUGINS", str(tmp_path / "none.so"))
    text = refusal(folder)
    assert "which is no file" in text
    assert "streamssm_tensorrt" in text


def test_a_library_that_is_no_plugin_library(trt, file, tmp_path, monkeypatch, cuda):
    folder = write_engine(tmp_path / "vad.p", file, trt, [BLOCK], plugins=True, plugin_version="0.1.0")
    monkeypatch.setenv("STREAMSSM_TENSORRT_PLUGINS", str(cuda))
    assert "cannot be loaded" in refusal(folder)


def test_plugins_for_another_gpu(trt, file, tmp_path, monkeypatch):
    from streamssm.backends import tensorrt as backend

    folder = write_engine(tmp_path / "vad.p", file, trt, [BLOCK], plugins=True, plugin_version="0.1.0")
    found = PluginLibrary(tmp_path / "p.so", "0.1.0", "10.16.1", "90,120-real", "1", ())
    monkeypatch.setattr(backend, "load_plugins", lambda module: found)
    text = refusal(folder)
    assert "have code for sm 90,120-real, this GPU is sm_87" in text
    assert "-DCMAKE_CUDA_ARCHITECTURES=87 &&" in text


@pytest.mark.parametrize(
    ("archs", "runs"),
    [
        ("87", True),
        ("80;87-real", True),
        ("87,110", True),
        ("75", True),
        ("80-real", True),
        ("75-real", False),
        ("90a", False),
        ("native", True),
    ],
)
def test_which_gpus_plugins_have_code_for(archs, runs):
    assert PluginLibrary(Path("p.so"), "", "", archs, "", ()).runs_on(87) == runs


def test_a_reason_is_that_of_the_failure(model, x, trt, monkeypatch):
    def fails(why):
        def execute(self, stream):
            if why:
                model.backend.logger.log(trt.ILogger.ERROR, why)
            return False

        return execute

    stream = model.stream()
    for why, said in (("out of memory", "out of memory"), ("", "TensorRT gives no reason")):
        monkeypatch.setattr(trt.Context, "execute_async_v3", fails(why))
        with pytest.raises(BackendError, match=said):
            stream.push(x[:BLOCK])


def test_a_block_or_a_batch_that_no_profile_holds(model, x):
    with pytest.raises(UsageError, match=r"blocks of 160, 640 items, not 320.*--block 160,320,640"):
        model.stream(block=320)
    with pytest.raises(UsageError, match=r"1 to 4 sequences at once, not 9.*--batch 9"):
        model.pool(slots=9)


def test_damage(folder):
    engine = folder / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    assert "copy it again, or build it again" in refusal(folder, IntegrityError)
    engine.unlink()
    assert "missing" in refusal(folder, ModelFileError)


def test_the_wrong_backend_for_it(folder, file):
    assert "choose tensorrt" in refusal(folder, UsageError, backend="cpu")
    assert "one it was built in" in refusal(folder, UsageError, precision="float16")
    text = refusal(file.path, UsageError, backend="tensorrt")
    assert f"streamssm export {file.path} --format tensorrt --target local" in text


def test_a_state_without_elements_is_no_tensor_of_an_engine(trt, file, tmp_path, x):
    empty = StateTensor("nothing", "next.nothing", (0, 2))
    manifest = msgspec.structs.replace(file.manifest, states=(empty, *file.manifest.states))
    folder = write_engine(tmp_path / "v.e", dataclasses.replace(file, manifest=manifest), trt, [BLOCK])
    stream = streamssm.load(folder).stream()
    np.testing.assert_allclose(
        pushed(stream, x, [999]), streamssm.load("vad", backend="cpu").scan(x), atol=1e-5
    )
    assert stream.state().states[0].shape == (1, 0, 2)


def test_an_engine_with_other_tensors(trt, file, tmp_path):
    other = msgspec.structs.replace(file.manifest.outputs[0], shape=(3,))
    manifest = msgspec.structs.replace(file.manifest, outputs=(other,), events=None)
    folder = write_engine(tmp_path / "v.x", dataclasses.replace(file, manifest=manifest), trt, [BLOCK])
    with pytest.raises(ManifestError, match="output speech should be"):
        streamssm.load(folder)


# The command line.


def test_the_commands_take_an_engine(folder, tmp_path, x):
    import wave

    from click.testing import CliRunner

    from streamssm.cli import cli

    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.clip(x, -1, 1) * 32767).astype("<i2").tobytes())

    def lines(model) -> list[str]:
        done = CliRunner().invoke(cli, ["run", str(model), str(tmp_path / "x.wav"), "--emit", "items"])
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    ours = lines(folder)
    assert len(ours) == len(lines("vad")) == -(-len(x) // BLOCK)
    done = CliRunner().invoke(cli, ["bench", str(folder), "--seconds", "0.5", "--json"])
    assert done.exit_code == 0, done.output
