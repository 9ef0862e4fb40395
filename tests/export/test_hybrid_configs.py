"""Configs of the hybrid families: earlier spellings are understood, lies and what is not implemented are
refused with the key or tensor named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import TOLERANCE, edit_config, pushed, reference, relative_error, save
from families_b import CASES
from safetensors.torch import load_file, save_file

from streamssm.errors import ExportError
from streamssm.export.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family -> (model of transformers, folder), made when first asked for."""
    made = {}

    def get(family):
        if family not in made:
            model = CASES[family][0].model()
            made[family] = model, save(model, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a family's folder, to be spoilt."""

    def copy(family) -> Path:
        return shutil.copytree(saved(family)[1], tmp_path / family)

    return copy


def edit_tensors(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path)


def same_logits(model, folder, case) -> bool:
    wanted = reference(model, case.tokens(100), case.window)
    layer = load_checkpoint(folder, window=case.window).materialise()
    return relative_error(pushed(layer, case.tokens(100), [50, 1, 49]), wanted) < TOLERANCE


LIES = {
    "no such layer type": ("zamba", {"layers_block_type": ["mamba", "conv"] * 2}, "'conv' is no layer type"),
    "a layer too few": ("zamba", {"num_hidden_layers": 6}, "does not fit num_hidden_layers = 6"),
    "another width": ("zamba", {"attention_hidden_size": 30}, "attention_hidden_size = 30"),
    "heads that do not divide": ("zamba", {"n_mamba_heads": 5}, "num_heads = 5 does not divide 24"),
    "other heads": ("zamba", {"n_mamba_heads": 2}, "a stack of 2"),
    "an odd activation": ("zamba", {"hidden_act": "mish"}, "hidden_act = 'mish' is not implemented"),
    "no layer types": ("zamba2", {"layers_block_type": None}, "layers_block_type is missing"),
    "other blocks": ("zamba2", {"num_mem_blocks": 3}, "shared_transformer"),
    "no adapters": ("zamba2", {"use_shared_attention_adapter": False}, "linear_k_adapter_list"),
    "another rank": ("zamba2", {"adapter_rank": 4}, "adapter_list"),
    "mixer heads": ("zamba2", {"n_mamba_heads": 7}, "n_mamba_heads = 7 does not divide the 24"),
    "a layer beyond the last": ("bamba", {"attn_layer_indices": [3]}, "attn_layer_indices = 3 is beyond"),
    "other attention": ("bamba", {"attn_layer_indices": [0]}, "layers.0.self_attn"),
    "scaled positions": ("bamba", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
    "older scaled positions": (
        "bamba",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "type = 'linear'",
    ),
    "an activation": ("bamba", {"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented"),
    "heads and their size": ("bamba", {"mamba_d_head": 5}, "heads of 5 channels are not the 48"),
    "dt limits": ("bamba", {"time_step_limit": [0.1]}, "time_step_limit"),
    "an odd rotary part": (
        "bamba",
        {"rope_parameters": {"partial_rotary_factor": 0.4}},
        "rotary_dim = 3 must be even",
    ),
    "four multipliers": ("falcon_h1", {"ssm_multipliers": [1.0] * 4}, "ssm_multipliers"),
    "inner width": ("falcon_h1", {"mamba_d_ssm": 24, "mamba_d_head": None}, "layers.0.mamba"),
    "no norm": ("falcon_h1", {"mamba_rms_norm": False}, "mamba.norm.weight has no place"),
    "no scale": ("granite_moe_hybrid", {"logits_scaling": 0}, "logits_scaling"),
    "more experts": ("granite_moe_hybrid", {"num_local_experts": 6}, "router.layer.weight"),
    "all of too few": ("granite_moe_hybrid", {"num_experts_per_tok": 9}, "top_k = 9"),
    "a letter": (
        "nemotron_h",
        {"layers_block_type": None, "hybrid_override_pattern": "MEX-E"},
        "hybrid_override_pattern = 'X'",
    ),
    "expert groups": ("nemotron_h", {"n_group": 2}, "groups = 2 does not divide 9"),
    "fewer experts": ("nemotron_h", {"n_routed_experts": 6}, "gate.e_score_correction_bias"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_config_that_lies_is_refused(folder, name):
    family, changes, message = LIES[name]
    spoilt = folder(family)
    edit_config(spoilt, **changes)
    with pytest.raises(ExportError, match=message):
        load_checkpoint(spoilt, window=20)


@pytest.mark.parametrize("family", CASES)
def test_attention_to_everything_wants_a_window(saved, family):
    with pytest.raises(ExportError, match="--window"):
        load_checkpoint(saved(family)[1])


@pytest.mark.parametrize("family", CASES)
def test_the_window_is_noted_as_imposed(saved, family):
    assert load_checkpoint(saved(family)[1], window=20).window_imposed == 20


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_missing_tensor_is_named(folder, family, which):
    spoilt = folder(family)
    names = sorted(load_file(spoilt / "model.safetensors"))
    gone = names[0 if which == "first" else -1]
    edit_tensors(spoilt, lambda tensors: {name: t for name, t in tensors.items() if name != gone})
    with pytest.raises(ExportError, match=gone.replace(".", r"\.").removeprefix("backbone")):
        load_checkpoint(spoilt, window=20).materialise()


def test_a_window_without_attention_is_refused(folder):
    spoilt = folder("bamba")
    edit_config(spoilt, attn_layer_indices=[])
    with pytest.raises(ExportError, match="no attention"):
        load_checkpoint(spoilt, window=20)


# --- what earlier configs and checkpoints look like ----------------------------------------

EARLIER = {
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "attention_head_dim": None,
    },
    "bamba": {"rope_parameters": None, "rope_theta": 500.0, "mamba_d_head": "auto"},
    "granite_moe_hybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "nemotron_h": {
        "layers_block_type": None,
        "hybrid_override_pattern": "ME*-E",
        "n_groups": None,
        "mamba_n_groups": 2,
    },
}


@pytest.mark.parametrize("family", EARLIER)
def test_earlier_configs_mean_the_same(saved, folder, family):
    model, changed = saved(family)[0], folder(family)
    edit_config(changed, **EARLIER[family])
    assert same_logits(model, changed, CASES[family][0])


def test_what_predicts_further_tokens_is_left_out(saved, folder):
    changed = folder("nemotron_h")
    edit_tensors(changed, lambda tensors: tensors | {"mtp.layers.0.norm.weight": torch.ones(12)})
    assert same_logits(saved("nemotron_h")[0], changed, CASES["nemotron_h"][0])


def test_copies_of_a_shared_block_must_agree(saved, folder):
    name = "model.layers.{}.shared_transf.self_attn.q_proj.weight"
    changed = folder("zamba")
    edit_tensors(changed, lambda tensors: tensors | {name.format(3): tensors[name.format(1)].clone()})
    assert same_logits(saved("zamba")[0], changed, CASES["zamba"][0])
    edit_tensors(changed, lambda tensors: tensors | {name.format(3): tensors[name.format(1)] + 1})
    with pytest.raises(ExportError, match=r"layers\.3\.shared_transf.*differ"):
        load_checkpoint(changed, window=20).materialise()


def test_multipliers_go_into_16_bit_weights_without_rounding(saved, folder):
    """As in the model with the same weights and float32 arithmetic."""
    changed, case = folder("falcon_h1"), CASES["falcon_h1"][0]
    edit_tensors(changed, lambda tensors: {name: t.bfloat16() for name, t in tensors.items()})
    model = case.model()
    rounded = {name: t.bfloat16().float() for name, t in model.state_dict().items()}
    model.load_state_dict(rounded)
    assert same_logits(model, changed, case)


def test_nothing_else_of_the_config_is_needed(folder):
    """Keys that say how a model was trained or is served may be absent."""
    changed = folder("falcon_h1")
    config = json.loads((changed / "config.json").read_text())
    served = ("use_cache", "initializer_range", "attention_dropout", "max_position_embeddings", "dtype")
    edit_config(changed, **dict.fromkeys((*served, "num_logits_to_keep", "mamba_chunk_size")))
    assert "use_cache" in config
    load_checkpoint(changed, window=20)
