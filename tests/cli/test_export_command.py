"""``streamssm export``: from a config to a file that passes ``check``."""

import importlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import streamssm

CONFIG = {
    "name": "hybrid",
    "input": {"kind": "features", "size": 3, "rate": 50},
    "pattern": ["mamba", "mamba2", "swa"],
    "d_model": 16,
    "mamba2": {"headdim": 8, "d_state": 8},
    "swa": {"window": 5, "num_heads": 2},
    "head": {"size": 2, "activation": "softmax", "labels": ["rest", "move"]},
}

SMALL = {"input": {"kind": "features", "size": 2}, "pattern": ["gru"], "d_model": 4}


@pytest.fixture
def config(made) -> str:
    (made / "hybrid.json").write_text(json.dumps(CONFIG))
    return "hybrid.json"


def test_a_hybrid_is_exported_checked_and_run(call, made, config):
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    exported = call("export", config, "-o", "hybrid.onnx", "--license", "CC0-1.0", "--block", 2)
    assert exported.exit_code == 0, exported.output
    assert exported.stdout == "hybrid.onnx\n"
    assert "against float64" in exported.stderr
    manifest = streamssm.load(made / "hybrid.onnx").manifest
    assert (manifest.name, manifest.license, manifest.block) == ("hybrid", "CC0-1.0", 2)

    checked = call("check", "hybrid.onnx", "--items", 40, "--splits", 10)
    assert checked.exit_code == 0, checked.output
    assert "golden vectors  pass" in checked.stdout

    np.save(made / "rows.npy", np.zeros((5, 3), np.float32))
    found = [json.loads(line) for line in call("run", "hybrid.onnx", "rows.npy").stdout.splitlines()]
    assert [sorted(line) for line in found] == [["move", "rest", "time"]] * 5

    data = bytearray((made / "hybrid.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (made / "flipped.onnx").write_bytes(data)
    assert call("check", "flipped.onnx").exit_code == 3


def test_weights_fit_or_are_refused(call, refused, made):
    torch = pytest.importorskip("torch")
    from streamssm.export import build

    torch.manual_seed(7)
    weights = build(SMALL).state_dict()
    torch.save(weights, made / "w.pt")
    config = "small.json"
    (made / config).write_text(json.dumps({"name": "small", **SMALL}))
    assert call("export", config, "-o", "by_weights.onnx", "--weights", "w.pt").exit_code == 0
    assert call("export", config, "-o", "by_seed.onnx", "--seed", 7).exit_code == 0
    assert (made / "by_weights.onnx").read_bytes() == (made / "by_seed.onnx").read_bytes()

    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    first = next(iter(arrays))
    save_file({**arrays, first: np.zeros((1, 2), np.float32)}, made / "shape.safetensors")
    save_file({name: array for name, array in arrays.items() if name != first}, made / "less.safetensors")
    torch.save([1, 2], made / "list.pt")
    torch.save({"evil": streamssm.errors.GateError("x")}, made / "evil.pt")
    for name, message in {
        "shape.safetensors": "has shape [1, 2]",
        "less.safetensors": f"1 weights are missing ({first})",
        "list.pt": "holds a list, not a state dict",
        "evil.pt": "not a plain state dict",
        "speech.wav": "write it with torch.save",
        "missing.pt": "missing.pt does not exist",
    }.items():
        line = refused("export", config, "-o", "refused.onnx", "--weights", name, code=1)
        assert message in line
        assert not (made / "refused.onnx").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "holds a list"),
        ("a.toml", "a = [", "not valid TOML"),
        ("a.yaml", "a: 1", "neither a config (.json, .toml) nor the folder"),
        ("a.json", "\xff", "not valid JSON"),
        ("missing.json", None, "No such file"),
        ("vad", None, "--format tensorrt makes an engine"),
        ("a.json", '{"colour": 1}', "'colour' is unknown"),
    ],
)
def test_bad_configs(refused, made, name, text, message):
    pytest.importorskip("onnx")
    if text is not None:
        (made / name).write_bytes(text.encode("latin-1"))
    assert message in refused("export", name, "-o", "x.onnx", code=1)


def test_outputs_are_checked_first(refused, config):
    assert "cannot be written" in refused("export", config, "-o", "no/folder/x.onnx", code=1)
    assert "written over" in refused("export", config, "-o", config, code=2)


def test_without_torch_one_line_says_what_to_install(refused, config, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    line = refused("export", config, "-o", "x.onnx", code=1)
    assert "exporting needs torch; pip install 'streamssm[export]'" in line
