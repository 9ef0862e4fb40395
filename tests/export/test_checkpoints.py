"""Forms of checkpoint folders: shards, pickles, 16-bit weights, state-spaces and Mistral layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import CASES, Case, edit_config, errors, reference, save
from safetensors.torch import load_file, save_file

from streamssm.export.checkpoints import load_checkpoint
from streamssm.export.checkpoints.reading import open_weights

MAMBA, MAMBA2 = CASES["mamba"][0], CASES["mamba2"][0]


def tensors(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    """The state dict of the case's model as transformers saves it."""
    return load_file(save(case.model(), folder / "saved") / "model.safetensors")


def assert_equal(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """The folder holds the case's model, in weights of ``dtype``."""
    model = case.model().to(dtype).float()
    wanted = reference(model, case.tokens(60), case.window)
    found = errors(load_checkpoint(folder, window=case.window).materialise(), case.tokens(60), wanted)
    assert max(found.values()) < 1e-5, found


def write(folder: Path, config: dict, weights: dict, file: str = "pytorch_model.bin", **options) -> Path:
    """A folder of a config and a state dict."""
    folder.mkdir(exist_ok=True)
    name = "params.json" if "dim" in config else "config.json"
    (folder / name).write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file, **options)
    return folder


def state_spaces_names(weights: dict) -> dict:
    """Names of transformers -> names of mamba_ssm, with the head beside the embedding it is tied to."""
    renamed = {name.replace("embeddings.", "embedding."): value for name, value in weights.items()}
    return {"lm_head.weight": renamed["backbone.embedding.weight"]} | renamed


@pytest.mark.parametrize("case", [MAMBA, CASES["jamba"][0]], ids=["mamba", "jamba"])
def test_shards(case, tmp_path):
    case.model().save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(case, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_become_float32(dtype, tmp_path):
    MAMBA.model().to(dtype).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert {read().dtype for read in checkpoint.tensors.values()} == {torch.float32}
    assert_equal(MAMBA, tmp_path, dtype)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_both_formats(zipped, tmp_path):
    config = json.loads((save(MAMBA.model(), tmp_path / "a") / "config.json").read_text())
    weights = load_file(tmp_path / "a" / "model.safetensors")
    folder = write(tmp_path / "b", config, weights, _use_new_zipfile_serialization=zipped)
    assert_equal(MAMBA, folder)


def test_sharded_pickles(tmp_path):
    folder = save(MAMBA.model(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, placed = sorted(weights), {}
    for part in range(2):
        file = f"pytorch_model-0000{part + 1}-of-00002.bin"
        torch.save({name: weights[name] for name in names[part::2]}, folder / file)
        placed |= dict.fromkeys(names[part::2], file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    assert_equal(MAMBA, folder)


# --- state-spaces and Mistral -------------------------------------------------------------


def test_state_spaces_mamba(tmp_path):
    config = {"d_model": 20, "n_layer": 3, "vocab_size": 33, "ssm_cfg": {"d_state": 5}, "rms_norm": True}
    case = Case("mamba", "Mamba", MAMBA.config | {"vocab_size": 40})
    config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
    folder = write(tmp_path / "s", config, state_spaces_names(tensors(case, tmp_path)))
    assert load_checkpoint(folder).vocabulary == 40
    assert_equal(case, folder)


def test_state_spaces_mamba2(tmp_path):
    mixer = {"layer": "Mamba2", "d_state": 5, "headdim": 4, "ngroups": 3}
    config = {"d_model": 18, "n_layer": 3, "vocab_size": 37, "ssm_cfg": mixer, "pad_vocab_size_multiple": 1}
    config |= {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}, "tie_embeddings": True}
    folder = write(tmp_path / "s", config, state_spaces_names(tensors(MAMBA2, tmp_path)))
    assert_equal(MAMBA2, folder)


def test_state_spaces_with_layer_norm_and_mlp(tmp_path):
    """No peer has this form: its parameters, and that the model streams, are what is tested."""
    config = {"d_model": 12, "n_layer": 2, "vocab_size": 16, "ssm_cfg": {}, "rms_norm": False}
    config |= {"d_intermediate": 100, "tie_embeddings": False}
    names = {"embedding.weight": (16, 12), "norm_f.weight": (12,), "norm_f.bias": (12,)}
    for i in range(2):
        layer = {f"{norm}.{leaf}": (12,) for norm in ("norm", "norm2") for leaf in ("weight", "bias")}
        layer |= {"mlp.fc1.weight": (256, 12), "mlp.fc2.weight": (12, 128), "mixer.in_proj.weight": (48, 12)}
        layer |= {"mixer.conv1d.weight": (24, 1, 4), "mixer.conv1d.bias": (24,), "mixer.D": (24,)}
        layer |= {"mixer.x_proj.weight": (33, 24), "mixer.dt_proj.weight": (24, 1), "mixer.A_log": (24, 16)}
        layer |= {"mixer.dt_proj.bias": (24,), "mixer.out_proj.weight": (12, 24)}
        names |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    weights = {f"backbone.{name}": 0.3 * torch.randn(shape) for name, shape in names.items()}
    layer = load_checkpoint(write(tmp_path, config, weights | {"lm_head.weight": torch.randn(16, 12)}))
    tokens = torch.arange(50)[None] % 16
    model = layer.materialise()
    with torch.no_grad():
        assert max(errors(model, tokens, model(tokens)[0]).values()) < 1e-5


class Attention(torch.nn.Module):
    """Attention of mamba_ssm's hybrids, whole sequences only: 5 query heads on 1, of 6 channels, 4 of which
    rotate; a convolution of width 3; a gated MLP of 128 channels beside."""

    def __init__(self, width: int, window: int):
        super().__init__()
        self.window = window
        self.in_proj = torch.nn.Linear(width, 42 + 256, bias=False)
        self.conv1d = torch.nn.Conv1d(42, 42, 3, padding=2, groups=42)
        self.out_proj = torch.nn.Linear(30 + 128, width)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, heads, 6], as complex numbers (channel 0 with 2, 1 with 3)."""
        angle = torch.arange(x.shape[1])[:, None, None] * 100.0 ** (-torch.arange(2) / 2)
        turned = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag, x[..., 4:]], -1)

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        T = x.shape[1]
        qkv, up, gate = self.in_proj(x).split([42, 128, 128], -1)
        qkv = self.conv1d(qkv.transpose(1, 2))[..., :T].transpose(1, 2)
        q, k, v = (part.unflatten(-1, (-1, 6)) for part in qkv.split([30, 6, 6], -1))
        q, k = self.rotate(q), self.rotate(k).expand(-1, -1, 5, -1)
        distance = torch.arange(T)[:, None] - torch.arange(T)
        scores = torch.einsum("bthd,bshd->bhts", q, k) * 0.3
        scores = scores.masked_fill((distance < 0) | (distance >= self.window), -torch.inf)
        y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v.expand(-1, -1, 5, -1)).flatten(-2)
        return self.out_proj(torch.cat([y, up * torch.nn.functional.silu(gate)], -1))


def test_state_spaces_hybrid(tmp_path):
    """The mixers of two layers are attention; the rest, and the blocks, are those of transformers."""
    model, tokens = MAMBA2.model(), MAMBA2.tokens()
    for layer in (0, 2):
        model.backbone.layers[layer].mixer = Attention(18, window=37)
    wanted = reference(model, tokens, None)
    mixer = {"layer": "Mamba2", "d_state": 5, "headdim": 4, "ngroups": 3}
    attention = {
        "causal": True,
        "num_heads": 5,
        "num_heads_kv": 1,
        "head_dim": 6,
        "d_conv": 3,
        "mlp_dim": 200,
    }
    attention |= {"qkv_proj_bias": False, "rotary_emb_dim": 4, "rotary_emb_base": 100.0, "softmax_scale": 0.3}
    config = {"d_model": 18, "n_layer": 3, "vocab_size": 37, "ssm_cfg": mixer, "pad_vocab_size_multiple": 1}
    config |= {"attn_layer_idx": [0, 2], "attn_cfg": attention, "tie_embeddings": True}
    folder = write(tmp_path / "s", config, state_spaces_names(model.state_dict()))
    checkpoint = load_checkpoint(folder, window=37)
    assert checkpoint.window_imposed == 37
    found = errors(checkpoint.materialise(), tokens, wanted)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("own_config", [True, False])
def test_codestral(own_config, tmp_path):
    """params.json and consolidated.safetensors, or the latter beside the config of transformers."""
    options = {"hidden_size": 64, "num_heads": 2, "head_dim": 64, "state_size": 128, "n_groups": 2}
    case = Case("mamba2", "Mamba2", {"vocab_size": 33, "num_hidden_layers": 2} | options)
    weights = tensors(case, tmp_path)
    theirs = {f"model.{name.replace('embeddings.', 'embedding.')}": value for name, value in weights.items()}
    config = {"dim": 64, "n_layers": 2, "vocab_size": 33, "n_groups": 2, "rms_norm": True}
    config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 1}
    config |= {"tie_embeddings": False, "model_type": "mamba"}
    if not own_config:
        config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert_equal(case, write(tmp_path / "s", config, theirs, "consolidated.safetensors"))


# --- windows ------------------------------------------------------------------------------


def test_a_window_is_imposed_only_where_the_model_has_none(tmp_path):
    griffin = save(CASES["recurrent_gemma"][0].model(), tmp_path / "a")
    assert load_checkpoint(griffin).window_imposed is None
    assert load_checkpoint(griffin, window=5000).window_imposed is None
    narrowed = load_checkpoint(griffin, window=9)
    assert narrowed.window_imposed == 9
    assert narrowed.layer.state_spec()["backbone.layers.2.mixer.key"].shape[1] == 9
    jamba = save(CASES["jamba"][0].model(), tmp_path / "b")
    assert load_checkpoint(jamba, window=37).window_imposed == 37


def test_a_narrowed_window_equals_transformers_with_the_same_mask(tmp_path):
    case = CASES["recurrent_gemma"][0]
    wider = Case(case.family, case.prefix, case.config | {"attention_window_size": 9})
    model = case.model()
    wanted = reference(wider.model(), case.tokens(), None)
    layer = load_checkpoint(save(model, tmp_path), window=9).materialise()
    assert max(errors(layer, case.tokens(), wanted).values()) < 1e-4


# --- memory -------------------------------------------------------------------------------


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    folder = save(CASES["jamba"][0].model(), tmp_path)
    weights = open_weights(folder)
    weights.read = None  # type: ignore[method-assign]
    assert weights.described("model.embed_tokens.weight").shape == (37, 24)
    checkpoint = load_checkpoint(folder, window=5)
    assert all(parameter.is_meta for parameter in checkpoint.layer.parameters())


def test_what_ends_a_text_and_what_spells_it(tmp_path):
    folder = save(MAMBA.model(), tmp_path)
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_config(folder, eos_token_id=[3, 5000, 7])
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.end, checkpoint.tokenizer) == ((3, 7), None)
    (folder / "generation_config.json").write_text('{"eos_token_id": 4}')
    (folder / "tokenizer.json").write_text("{}")
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.end, checkpoint.tokenizer) == ((4,), folder / "tokenizer.json")
