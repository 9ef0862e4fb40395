"""``streamssm quantize``, and the types of ``streamssm export --weights``."""

import importlib
import json

import numpy as np
import pytest

import streamssm

CONFIG = {
    "name": "tagger",
    "input": {"kind": "features", "size": 6, "rate": 50},
    "pattern": ["mamba"],
    "d_model": 32,
    "head": {"size": 8, "activation": "softmax"},
}

INT8 = ["quantize", "tagger.onnx", "-o", "no.onnx", "--weights", "int8"]


@pytest.fixture(scope="module")
def plain(made) -> str:
    """A float32 file, its config, and a labelled set."""
    pytest.importorskip("torch")
    from streamssm.export import build, export, model_options

    (made / "tagger.json").write_text(json.dumps(CONFIG))
    export(build(CONFIG), made / "tagger.onnx", **model_options(CONFIG))
    x = np.random.default_rng(0).standard_normal((2, 40, 6)).astype(np.float32)
    labels = streamssm.load(made / "tagger.onnx").scan(x).argmax(-1)
    np.savez(made / "set.npz", x=x, labels=labels)
    np.save(made / "x.npy", x)
    np.save(made / "labels.npy", labels)
    return "tagger.onnx"


def test_a_file_is_quantised_checked_and_described(call, made, plain):
    done = call(
        "quantize", plain, "-o", "small.onnx", "--weights", "int4", "--data", "set.npz", "--report", "r.json"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == "small.onnx\n"
    assert "accuracy: 1.0000 float32" in done.stderr
    assert "int4 in blocks of 128" in done.stderr
    assert "2 x 64, less than 32 x 8" in done.stderr
    report = json.loads((made / "r.json").read_text())
    names = [layer["name"] for layer in report["layers"]]
    assert all(name in done.stderr for name in names)
    assert "head.weight" in names
    assert report["baseline"] == 1
    assert streamssm.load(made / "small.onnx").sha256 == report["sha256"]
    assert call("check", "small.onnx", "--splits", 5, "--items", 60).exit_code == 0
    told = call("info", "small.onnx").stdout
    assert "int4 in blocks of 128" in told
    assert "against the float32 file" in told
    assert json.loads(call("info", "small.onnx", "--json").stdout)["weights"]["dtype"] == "int4"


def test_labels_may_come_in_a_file_of_their_own(call, made, plain):
    options = ["--weights", "int8", "--weights-block", 32, "--exclude", "head.*", "--total-only"]
    data = ["--data", "x.npy", "--labels", "labels.npy", "--report", "r2.json"]
    done = call("quantize", plain, "-o", "int8.onnx", *options, *data)
    assert done.exit_code == 0, done.output
    report = json.loads((made / "r2.json").read_text())
    assert (report["block_size"], report["metric"]) == (32, "accuracy")
    assert all(layer["effect"] is None for layer in report["layers"])
    assert streamssm.load(made / "int8.onnx").manifest.weights.excluded == ("head.weight",)


def test_export_rounds_what_it_writes(call, made, plain):
    torch = pytest.importorskip("torch")
    from streamssm.export import build

    torch.manual_seed(3)
    torch.save(build(CONFIG).state_dict(), made / "tagger.pt")
    options = ["--weights", "tagger.pt", "--weights", "int8", "--total-only"]
    done = call("export", "tagger.json", "-o", "both.onnx", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == "both.onnx\n"
    manifest = streamssm.load(made / "both.onnx").manifest
    assert (manifest.name, manifest.weights.dtype) == ("tagger", "int8")
    assert call("export", "tagger.json", "-o", "f.onnx", "--seed", 3, "--weights", "float32").exit_code == 0
    assert manifest.provenance["float32 file"] == streamssm.load(made / "f.onnx").sha256


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["quantize", "tagger.onnx", "-o", "no.onnx", "--weights", "int3"], 2, "int3"),
        ([*INT8, "--exclude", "x*"], 2, "'x*' matches no linear layer"),
        (["quantize", "tagger.onnx", "-o", "tagger.onnx", "--weights", "int8"], 2, "written over"),
        ([*INT8, "--metric", "auc"], 2, "need --data"),
        ([*INT8, "--data", "set.npz", "--labels", "labels.npy"], 2, "labels of their own"),
        ([*INT8, "--data", "speech.wav"], 2, "it begins with b'RIFF"),
        (["quantize", "vad2", "-o", "no.onnx", "--weights", "int8"], 3, "no built-in model 'vad2'"),
        (["export", "tagger.json", "-o", "no.onnx", "--weights", "int8", "--weights", "int4"], 2, "one type"),
        (["export", "tagger.json", "-o", "no.onnx", "--exclude", "head.*"], 2, "need --weights int8"),
    ],
)
def test_what_is_refused(refused, made, plain, arguments, code, message):
    assert message in refused(*arguments, code=code)
    assert not (made / "no.onnx").exists()


def test_without_onnx_one_line_says_what_to_install(refused, plain, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(importlib, "import_module", missing)
    line = refused("quantize", plain, "-o", "no.onnx", "--weights", "int8", code=1)
    assert "quantising needs onnx; pip install 'streamssm[export]'" in line
