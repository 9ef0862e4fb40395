"""``streamssm export FOLDER``: a checkpoint that transformers saved, to a file that runs on text."""

from __future__ import annotations

import json

import pytest

import streamssm

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def folder(made):
    """A byte-level hybrid with random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = {"vocab_size": 256, "hidden_size": 36, "intermediate_size": 34, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 3, "num_key_value_heads": 1, "num_experts": 3, "pad_token_id": None}
    config = transformers.JambaConfig(attn_layer_period=2, attn_layer_offset=0, **options)
    transformers.JambaForCausalLM(config).save_pretrained(made / "tiny-jamba")
    return "tiny-jamba"


def test_a_folder_is_exported_checked_and_run_on_text(call, made, folder):
    exported = call("export", folder, "-o", "jamba.onnx", "--window", 9, "--alphabet", "bytes")
    assert exported.exit_code == 0, exported.output
    assert exported.stdout == "jamba.onnx\n"
    assert "against float64" in exported.stderr
    manifest = streamssm.load(made / "jamba.onnx").manifest
    assert (manifest.name, manifest.window_imposed, manifest.input.vocabulary) == ("tiny-jamba", 9, 256)
    assert manifest.provenance == {"checkpoint": "tiny-jamba", "family": "jamba"}
    checked = call("check", "jamba.onnx", "--items", 40, "--splits", 5)
    assert checked.exit_code == 0, checked.output
    scored = call("run", "jamba.onnx", "-", stdin=b"a few words")
    assert scored.exit_code == 0, scored.output
    assert [json.loads(line) for line in scored.stdout.splitlines()]


def test_a_folder_is_quantised(call, made, folder):
    exported = call("export", folder, "-o", "j8.onnx", "--window", 9, "--weights", "int8", "--total-only")
    assert exported.exit_code == 0, exported.output
    manifest = streamssm.load(made / "j8.onnx").manifest
    assert (manifest.weights.dtype, manifest.window_imposed) == ("int8", 9)
    # single items: experts without rows are quantised products of nothing
    checked = call("check", "j8.onnx", "--items", 40, "--splits", 5)
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "give a window of n items with --window n"),
        (["--window", "9", "--weights", "w.pt"], 2, "leave out --weights FILE and --seed"),
        (["--window", "9", "--seed", "1"], 2, "leave out --weights FILE and --seed"),
        (["--window", "9", "--alphabet", "nucleotides", "-o", "no/x.onnx"], 1, "cannot be written"),
    ],
)
def test_refusals(refused, made, folder, arguments, code, message):
    assert message in refused("export", folder, "-o", "refused.onnx", *arguments, code=code)
    assert not (made / "refused.onnx").exists()


def test_a_window_is_for_folders(refused, made):
    (made / "small.json").write_text(json.dumps({"input": {"kind": "features", "size": 2}}))
    assert "--window is for checkpoint" in refused(
        "export", "small.json", "-o", "x.onnx", "--window", 3, code=2
    )


def test_a_folder_without_a_checkpoint(refused, made):
    (made / "empty").mkdir()
    assert "has no config.json or params.json" in refused("export", "empty", "-o", "x.onnx", code=1)
