"""Opening a model: names, backends, the graph against the manifest."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import msgspec
import numpy as np
import pytest
from toy_models import TOYS, ema_toy, state

import streamssm
from streamssm import model as model_module
from streamssm.errors import BackendError, ManifestError, ModelFileError, UsageError
from streamssm.manifest import Output, decode_manifest


def test_the_package_is_light():
    code = """if True:
        import sys, streamssm
        heavy = {"torch", "onnxruntime", "onnx", "soundfile", "numpy", "safetensors", "msgspec"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        assert "load" in dir(streamssm) and streamssm.__version__
        streamssm.load, streamssm.Model, streamssm.Stream, streamssm.errors
        heavy -= {"numpy", "safetensors", "msgspec"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        try:
            streamssm.nothing
        except AttributeError as error:
            assert "nothing" in str(error)
        else:
            raise SystemExit(1)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_says_what_it_is(opened):
    toy, model = opened("frames")
    assert model.manifest.name == "frames"
    assert model.path.name == "frames.onnx"
    assert model.sha256 == model.manifest.sha256
    assert model.backend.name == "cpu"
    assert model.duration(8000) == 0.5
    assert opened("tokens")[1].duration(8) is None
    assert model.stream().block == toy.manifest.block
    with pytest.raises(AttributeError):
        model.path = "other"


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_backends_by_name(tmp_path, backend):
    assert streamssm.load(ema_toy().write(tmp_path), backend=backend).backend.name == "cpu"


@pytest.mark.parametrize("backend", ["CUDA", "CPU", ""])
def test_backends_that_are_not_there(tmp_path, backend):
    with pytest.raises(UsageError, match="choose one of auto, cpu"):
        streamssm.load(tmp_path / "missing.onnx", backend=backend)


def test_built_in_names(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "_BUILT_IN", tmp_path)
    with pytest.raises(ModelFileError, match=r"'vad' \(built in: none.*vad\.onnx"):
        streamssm.load("vad")
    ema_toy().write(tmp_path)
    assert model_module.built_in_models() == ["ema"]
    assert streamssm.load("ema").path == tmp_path / "ema.onnx"
    with pytest.raises(ModelFileError, match=r"built in: ema"):
        streamssm.load("vad")
    for path in ("./ema", "sub/ema", "ema.onnx", tmp_path / "none"):
        with pytest.raises(ModelFileError, match="cannot be read"):
            streamssm.load(path)


# onnxruntime itself.


def test_onnxruntime_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install .onnxruntime>=1\.20"):
        streamssm.load(ema_toy().write(tmp_path))


@pytest.mark.parametrize("version", ["1.19.2", "0.9", "unknown"])
def test_onnxruntime_is_too_old(tmp_path, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(__version__=version))
    with pytest.raises(BackendError, match=rf"{version} is too old; pip install"):
        streamssm.load(ema_toy().write(tmp_path))


def test_without_the_private_attributes(opened, rng, monkeypatch):
    from streamssm.backends import cpu

    toy, model = opened("ema")
    x = toy.random(30, rng)
    wanted = model.scan(x)

    class Wrapped:
        def __init__(self, session):
            self.run_with_iobinding = session.run_with_iobinding

    plain = cpu.bound_call
    monkeypatch.setattr(cpu, "bound_call", lambda session, binding: plain(Wrapped(session), binding))
    assert model.scan(x).tobytes() == wanted.tobytes()


def test_a_graph_onnxruntime_cannot_open(tmp_path):
    toy = ema_toy()
    toy.graph = toy.graph.replace("Identity (none)", "Elu (count)")
    toy.proto = lambda: __import__("onnx").parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>' + toy.graph
    )
    with pytest.raises(ModelFileError, match=r"onnxruntime .* cannot open") as caught:
        streamssm.load(toy.write(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_an_operator_onnxruntime_does_not_have(tmp_path, capfd):
    toy = ema_toy()
    toy.graph = toy.graph.replace("Identity (none)", "com.microsoft.Nothing (none)")
    header = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
    toy.proto = lambda: __import__("onnx").parser.parse_model(header + toy.graph)
    with pytest.raises(BackendError, match="Nothing"):
        streamssm.load(toy.write(tmp_path))
    assert capfd.readouterr().out == ""


# The graph against the manifest.

_H, _COUNT, _NONE = ema_toy().manifest.states
_INPUT = ema_toy().manifest.input

MISMATCHES = [
    ({"states": (_H, _COUNT)}, r"inputs \['count', 'h', 'x'\], the graph has .*none"),
    ({"states": (_H, _COUNT, _NONE, state("more", 2))}, "more"),
    (
        {"states": (msgspec.structs.replace(_H, shape=(3,)), _COUNT, _NONE)},
        r"input h should be .* \[any, 3\]",
    ),
    (
        {"states": (msgspec.structs.replace(_H, dtype="int64"), _COUNT, _NONE)},
        "input h should be tensor.int64",
    ),
    ({"states": (_H, msgspec.structs.replace(_COUNT, shape=(1,)), _NONE)}, r"input count .* \[any, 1\]"),
    ({"states": (msgspec.structs.replace(_H, next="y"), _COUNT, _NONE)}, "one name for two"),
    ({"states": (msgspec.structs.replace(_H, next="other"), _COUNT, _NONE)}, "outputs .*other"),
    ({"input": msgspec.structs.replace(_INPUT, name="audio")}, "audio"),
    ({"input": msgspec.structs.replace(_INPUT, shape=(3,))}, r"input x should be .* \[any, any, 3\]"),
    ({"input": msgspec.structs.replace(_INPUT, dtype="int64")}, "input x should be tensor.int64"),
    ({"outputs": (Output("y", "features", (3,)),)}, r"output y should be .* \[any, any, 3\]"),
    ({"outputs": (Output("z", "features", (2,)),)}, r"outputs .*'z'.*'y'"),
]


@pytest.mark.parametrize(("changes", "message"), MISMATCHES)
def test_the_graph_is_not_what_the_manifest_says(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        streamssm.load(ema_toy().write(tmp_path, **changes))


@pytest.mark.parametrize("axes", ["[1, T, 2]", "[B, 4, 2]"])
def test_a_fixed_batch_or_time_is_refused(tmp_path, axes):
    toy = ema_toy()
    toy.graph = toy.graph.replace("float[B, T, 2] x", f"float{axes} x")
    with pytest.raises(ManifestError, match=r"input x should be .* \[any, any, 2\]"):
        streamssm.load(toy.write(tmp_path))


# The golden sample.


def test_the_golden_sample(tmp_path, rng):
    toy = TOYS["pair"]()
    assert streamssm.load(toy.write(tmp_path)).golden() is None
    x = toy.random(8, rng)
    toy.golden = {"x": x, "y.same": x, "y.sums": np.zeros(2, np.float32)}
    found, outputs = streamssm.load(toy.write(tmp_path)).golden()
    np.testing.assert_array_equal(found, x)
    assert outputs.keys() == {"same", "sums"}
    toy.golden = {"x": x, "y.same": x}
    with pytest.raises(ModelFileError, match=r"golden sample cannot be read .*y\.sums"):
        streamssm.load(toy.write(tmp_path)).golden()


def test_the_backend_sends_no_reports_home(tmp_path):
    path = ema_toy().write(tmp_path)
    code = f"import streamssm; streamssm.load({str(path)!r})"
    home = tmp_path / "home"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"HOME": str(home)})
    assert not home.exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"vocabulary": 0}, "vocabulary"),
        ({"shape": (-1,)}, "shape"),
    ],
)
def test_impossible_numbers_in_a_manifest(field, message):
    manifest = TOYS["ema"]().manifest
    wrong = msgspec.structs.replace(manifest, input=msgspec.structs.replace(manifest.input, **field))
    with pytest.raises(ManifestError, match=message):
        decode_manifest(wrong.encode())
