"""Checkpoints that lie, lack or want too much: the key or tensor is named, and nothing is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from families import CASES, edit_config, save
from safetensors.torch import load_file, save_file

from streamssm.errors import ExportError
from streamssm.export import export
from streamssm.export.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """One folder of each of a few families."""
    root = tmp_path_factory.mktemp("saved")
    return {name: save(CASES[name][0].model(), root / name) for name in ("mamba", "mamba2", "jamba")}


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return copied(saved["mamba"], tmp_path / "mamba")


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in ("config.json", "model.safetensors"):
        (target / file).write_bytes((source / file).read_bytes())
    return target


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors; dots are written as two underscores."""
    path = folder / "model.safetensors"
    weights = load_file(path) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def refuse(folder: Path, message: str, window: int | None = None) -> None:
    """Neither loading nor exporting works, and no file appears."""
    target = folder.parent / "never.onnx"
    with pytest.raises(ExportError, match=re.escape(message)):
        attempt(folder, target, window)
    assert not target.exists()


def attempt(folder: Path, target: Path, window: int | None) -> None:
    checkpoint = load_checkpoint(folder, window=window)
    export(checkpoint.layer, target, **checkpoint.export_options())


# --- tensors ------------------------------------------------------------------------------

EMBEDDING = "backbone__embeddings__weight"
CONV = "backbone__layers__1__mixer__conv1d__weight"
D = "backbone__layers__0__mixer__D"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({CONV: None}, "tensor backbone.layers.1.mixer.conv1d.weight is missing; the checkpoint has"),
        ({EMBEDDING: None}, "tensor backbone.embeddings.weight is missing"),
        ({"lm_head__bias": torch.zeros(37)}, "tensor lm_head.bias has no place in the model"),
        ({"backbone__layers__7__norm__weight": torch.ones(20)}, "tensor backbone.layers.7.norm.weight has"),
        ({D: torch.zeros(39)}, "tensor backbone.layers.0.mixer.D has shape [39], the config makes it [40]"),
        ({D: torch.zeros(40, 1)}, "mixer.D has shape [40, 1]"),
        ({CONV: torch.zeros(40, 4)}, "conv1d.weight has shape [40, 4], the config makes it [40, 1, 4]"),
        ({D: torch.zeros(40, dtype=torch.int8)}, "mixer.D in model.safetensors has dtype torch.int8"),
        ({D: torch.zeros(40, dtype=torch.float64)}, "has dtype torch.float64; only float32, float16"),
        ({D: torch.zeros(40).to(torch.float8_e4m3fn)}, "has dtype F8_E4M3"),
        ({D: torch.full((40,), torch.nan)}, "tensor backbone.layers.0.mixer.D holds NaN"),
        ({D: torch.full((40,), torch.inf)}, "tensor backbone.layers.0.mixer.D holds NaN or infinity"),
        ({"lm_head__weight": torch.zeros(37, 20)}, "embeddings.weight and lm_head.weight differ, but the"),
        ({"backbone__embedding__weight": torch.zeros(37, 20)}, "are two for the same weight"),
    ],
)
def test_tensors_that_do_not_fit(folder, tensors, message):
    change(folder, **tensors)
    refuse(folder, message)


def test_a_head_that_is_tied_may_be_stored_twice(folder):
    weights = load_file(folder / "model.safetensors")
    change(folder, lm_head__weight=weights["backbone.embeddings.weight"].clone())
    load_checkpoint(folder).materialise()


def test_a_stack_of_too_many_experts(saved, tmp_path):
    folder = copied(saved["jamba"], tmp_path / "jamba")
    edit_config(folder, num_experts=4)
    refuse(folder, "has shape [5, 24], the config makes it [4, 24]", window=5)


# --- config -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"hidden_size": "20"}, "hidden_size = '20' must be a whole number of at least 1"),
        ({"hidden_size": True}, "hidden_size = True must be a whole number"),
        ({"hidden_size": 0}, "hidden_size = 0 must be a whole number"),
        ({"hidden_size": 10**15, "intermediate_size": 10**15}, "config.json describes no mamba model"),
        ({"hidden_size": 24}, "has shape [37, 20], the config makes it [37, 24]"),
        ({"vocab_size": 38}, "backbone.embeddings.weight has shape [37, 20]"),
        ({"num_hidden_layers": 4}, "tensor backbone.layers.3.norm.weight is missing"),
        ({"num_hidden_layers": 2}, "tensor backbone.layers.2.mixer.A_log has no place"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is more than there are tensors"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented; only 'silu'"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon = 'small' must be a number"),
        ({"layer_norm_epsilon": -1}, "must be a number of at least 0"),
        ({"use_bias": 1}, "use_bias = 1 must be true or false"),
        ({"use_bias": True}, "mixer.in_proj.bias is missing"),
        ({"use_conv_bias": False}, "conv1d.bias has no place"),
        ({"time_step_rank": "full"}, "time_step_rank = 'full' must be a whole number"),
        ({"time_step_rank": 3}, "the config makes it"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
        ({"model_type": "llama"}, "no checkpoint family for model_type = 'llama'"),
        ({"model_type": ["mamba"]}, "no checkpoint family for model_type = ['mamba']"),
        ({"model_type": None}, "no checkpoint family for model_type = None, architectures = ['MambaFor"),
        ({"quantization_config": {"bits": 4}}, "quantised weights (quantization_config)"),
    ],
)
def test_configs_that_lie(folder, changes, message):
    edit_config(folder, **changes)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_step_limit": [0.1]}, "time_step_limit = [0.1] must be a list of 2 numbers"),
        ({"time_step_limit": [0.5, 0.1]}, "dt_limit = (0.5, 0.1) must be (low, high)"),
        ({"time_step_limit": [0, {"__float__": "NaN"}]}, "must be a list of 2 numbers"),
        ({"num_heads": 8}, "num_heads = 8 times head_dim = 4 must be 36"),
        ({"n_groups": 2}, "ngroups = 2 does not divide 9"),
    ],
)
def test_mamba2_configs_that_lie(saved, tmp_path, changes, message):
    folder = copied(saved["mamba2"], tmp_path / "mamba2")
    edit_config(folder, **changes)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_offset": 3}, "attn_layer_offset = 3 must be below attn_layer_period = 3"),
        ({"num_key_value_heads": 4}, "num_kv_heads = 4 does not divide 6"),
        ({"num_experts_per_tok": 6}, "top_k = 6 is more than there are experts (5)"),
        ({"num_experts": 6}, "router.weight has shape [5, 24], the config makes it [6, 24]"),
        ({"expert_layer_offset": 0}, "is missing"),
    ],
)
def test_jamba_configs_that_lie(saved, tmp_path, changes, message):
    folder = copied(saved["jamba"], tmp_path / "jamba")
    edit_config(folder, **changes)
    refuse(folder, message, window=5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attn_cfg": {}, "dropout": 0.1}, "dropout = 0.1 is an unknown key"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "no checkpoint family"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 8}}, "d_ssm = 8 is an unknown key"),
        ({"ssm_cfg": {"bias": "no"}}, "config.json: ssm_cfg: bias = 'no' must be true or false"),
        ({"ssm_cfg": []}, "ssm_cfg = [] must be an object of keys"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"attn_layer_idx": [3]}, "attn_layer_idx = [3] names layers beyond n_layer = 3"),
        ({"attn_layer_idx": [1], "attn_cfg": {"causal": True}}, "layers 1 attend to everything"),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple = 0 must be"),
    ],
)
def test_state_spaces_configs_that_lie(folder, config, message):
    values = {"d_model": 20, "n_layer": 3, "vocab_size": 37} | config
    (folder / "config.json").write_text(json.dumps(values))
    refuse(folder, message)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"num_heads": 5}, "attn_cfg: causal is missing"),
        ({"num_heads": 5, "causal": False}, "attn_cfg: causal = False is not implemented; only True is"),
        ({"causal": True}, "attn_cfg: num_heads is missing"),
        ({"num_heads": 3, "causal": True}, "num_heads = 3 does not divide 20"),
        (
            {"num_heads": 5, "causal": True, "rotary_emb_interleaved": True},
            "rotary_emb_interleaved = True is",
        ),
        ({"num_heads": 5, "causal": True, "rotary_emb_dim": 3}, "rotary_dim = 3 must be even"),
        ({"num_heads": 5, "causal": True}, "tensor backbone.embedding.weight is missing"),
    ],
)
def test_attention_of_state_spaces_that_lies(folder, attention, message):
    values = {"d_model": 20, "n_layer": 3, "vocab_size": 37, "attn_layer_idx": [1], "attn_cfg": attention}
    (folder / "config.json").write_text(json.dumps(values))
    refuse(folder, message, window=5)


def test_windows(saved, folder):
    refuse(saved["jamba"], "layers 1, 4 attend to everything before them")
    refuse(saved["jamba"], "window = 0 must be at least 1", window=0)
    refuse(folder, "a window of 5 was given, but this Mamba model has no attention", window=5)


# --- files --------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/streamssm_was_here",)


def test_a_pickle_that_wants_more_than_tensors(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"evil": Evil()}, folder / "pytorch_model.bin")
    refuse(folder, "pytorch_model.bin wants more than tensors and was not opened")
    with pytest.raises(ExportError, match="system"):
        load_checkpoint(folder)
    assert not Path("/tmp/streamssm_was_here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "pytorch_model.bin holds a list, not a state dict"),
        ({"step": 3}, "'step' is a int, not a tensor"),
        ({3: torch.zeros(2)}, "3 is a Tensor, not a tensor by name"),
        ({"model": {"a": torch.zeros(2)}}, "'model' is a dict, not a tensor"),
    ],
)
def test_pickles_of_something_else(folder, content, message):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    refuse(folder, message)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 7, 900, -40])
def test_truncated_files(folder, name, keep):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:keep])
    refuse(folder, f"{name} is not a readable")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[1]", "config.json holds a list, not an object"),
        ("[" * 100_000, "config.json is not valid JSON"),
        ("\xff", "config.json is not valid JSON"),
        ("{}", "no checkpoint family for model_type = None"),
    ],
)
def test_configs_that_cannot_be_read(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuse(folder, message)


def test_folders_that_are_none(folder, tmp_path):
    refuse(tmp_path / "missing", "is no folder")
    refuse(folder / "config.json", "is no folder")
    (folder / "model.safetensors").unlink()
    refuse(folder, "holds no weights; one of model.safetensors")
    (folder / "config.json").unlink()
    refuse(folder, "has no config.json or params.json")


SHARD = "model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "has no weight_map"),
        ({"weight_map": {"a": "../mamba/" + SHARD}}, "shards must lie in the checkpoint's own folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "shards must lie in the checkpoint's own folder"),
        ({"weight_map": {"a": ".."}}, "shards must lie in the checkpoint's own folder"),
        ({"weight_map": {"a": "b\\c.bin"}}, "shards must lie in the checkpoint's own folder"),
        (
            {"weight_map": {"a": "other.safetensors"}},
            "other.safetensors is missing, but model.safetensors.ind",
        ),
        ({"weight_map": {"a": SHARD}}, f"a is not in {SHARD}, where model.safetensors.index.json says"),
        ({"weight_map": {"backbone.norm_f.weight": SHARD}}, f"{SHARD} holds backbone."),
    ],
)
def test_an_index_that_does_not_fit_its_shards(folder, index, message):
    (folder / "model.safetensors").rename(folder / SHARD)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(folder, message)
