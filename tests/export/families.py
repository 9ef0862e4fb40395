"""Checkpoint families as tiny models of transformers with random weights, and how to compare.

The reference is the whole-sequence form of transformers in float32, without a cache. Where its
attention sees everything, it is given the same sliding mask as ours.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
transformers = pytest.importorskip("transformers", reason="the reference of the checkpoint families")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ITEMS = 300
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One model: the classes of its config and model in transformers, and the config's arguments.

    ``window`` is what ``load_checkpoint`` is given; the reference's full attention gets it as a mask.
    """

    family: str
    prefix: str
    config: dict[str, Any] = field(default_factory=dict)
    window: int | None = None

    def model(self, seed: int = 0) -> torch.nn.Module:
        """The model of transformers with random weights."""
        config = getattr(transformers, f"{self.prefix}Config")(**self.config)
        config._attn_implementation = config._experts_implementation = "eager"
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.prefix}ForCausalLM")(config).float().eval()
        perturb(model)
        return model

    def tokens(self, items: int = ITEMS, seed: int = 1) -> torch.Tensor:
        """Random tokens [1, items]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.config["vocab_size"], (1, items), generator=generator)


@torch.no_grad()
def perturb(model: torch.nn.Module) -> None:
    """Move all weights away from where they start: norms from one, biases and skips from zero.

    Matrices by less the wider they are, so that values of wide models do not grow from layer to layer.
    """
    for parameter in model.parameters():
        scale = 0.3 if parameter.ndim == 1 else 0.4 * parameter.shape[-1] ** -0.5
        parameter.add_(scale * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name in model.state_dict():
            buffer.add_(0.3 * torch.randn_like(buffer))


@contextlib.contextmanager
def sliding(model: torch.nn.Module, window: int | None) -> Iterator[None]:
    """Full attention of a transformers model narrowed to the last ``window`` items."""
    module = sys.modules[type(model).__module__]
    full = getattr(module, "create_causal_mask", None)
    if window is None or full is None:
        yield
        return
    from transformers.masking_utils import sliding_window_overlay

    def narrowed(*args: Any, **kwargs: Any) -> Any:
        return full(*args, and_mask_function=sliding_window_overlay(window), **kwargs)

    module.create_causal_mask = narrowed
    try:
        yield
    finally:
        module.create_causal_mask = full


@torch.no_grad()
def reference(model: torch.nn.Module, tokens: torch.Tensor, window: int | None) -> torch.Tensor:
    """Logits [1, T, vocabulary] of the whole sequence at once."""
    with sliding(model, window):
        return model(tokens, use_cache=False).logits


def save(model: torch.nn.Module, folder: Path) -> Path:
    """The folder as transformers writes it."""
    model.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of a saved config; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest magnitude of what is wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def pushed(layer: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Logits of pushes of the given lengths with a carried state."""
    state, parts = layer.init_state(tokens.shape[0]), []
    for chunk in tokens.split(lengths, dim=1):
        y, state = layer(chunk, state)
        parts.append(y)
    return torch.cat(parts, dim=1)


def random_lengths(items: int, seed: int = 3) -> list[int]:
    """Lengths of 0 to 40 that add up to ``items``."""
    generator, lengths = torch.Generator().manual_seed(seed), []
    while (left := items - sum(lengths)) > 0:
        lengths.append(min(left, int(torch.randint(41, (), generator=generator))))
    return lengths


def errors(layer: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Relative error of the layer whole, in a random split and in single steps."""
    T = tokens.shape[1]
    splits = {"whole": [T], "split": random_lengths(T), "step": [1] * T}
    return {name: relative_error(pushed(layer, tokens, lengths), wanted) for name, lengths in splits.items()}


SMALL = {"vocab_size": 37, "hidden_size": 20, "num_hidden_layers": 3, "state_size": 5}
OTHER = {"vocab_size": 41, "hidden_size": 18, "num_hidden_layers": 2, "state_size": 3, "conv_kernel": 3}
BIASES = {"use_bias": True, "use_conv_bias": False}
UNTIED = {"tie_word_embeddings": False}

JAMBA = {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 14, "pad_token_id": None}
GRIFFIN = {
    "vocab_size": 37,
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "attention_window_size": 37,
    "pad_token_id": None,
}

CASES: dict[str, list[Case]] = {
    "mamba": [
        Case("mamba", "Mamba", SMALL),
        Case(
            "mamba",
            "Mamba",
            OTHER | BIASES | UNTIED | {"expand": 3, "time_step_rank": 5, "layer_norm_epsilon": 1e-3},
        ),
    ],
    "falcon_mamba": [
        Case("falcon_mamba", "FalconMamba", SMALL),
        Case(
            "falcon_mamba",
            "FalconMamba",
            OTHER | BIASES | UNTIED | {"mixer_rms_eps": 1e-2, "intermediate_size": 30},
        ),
    ],
    "mamba2": [
        Case(
            "mamba2",
            "Mamba2",
            SMALL
            | {"hidden_size": 18, "num_heads": 9, "head_dim": 4, "n_groups": 3, "tie_word_embeddings": True},
        ),
        Case(
            "mamba2",
            "Mamba2",
            OTHER
            | BIASES
            | {"hidden_size": 20, "num_heads": 5, "head_dim": 8, "n_groups": 1}
            | {"chunk_size": 16, "time_step_limit": (0.01, 0.5)},
        ),
    ],
    "jamba": [
        Case(
            "jamba",
            "Jamba",
            JAMBA
            | {"num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 5, "num_experts": 5}
            | {
                "attn_layer_period": 3,
                "attn_layer_offset": 1,
                "mamba_d_state": 5,
                "tie_word_embeddings": True,
            },
            window=37,
        ),
        Case(
            "jamba",
            "Jamba",
            JAMBA
            | {"num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 4, "num_experts": 3}
            | {"num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 0, "mamba_d_conv": 3}
            | {
                "expert_layer_period": 3,
                "mamba_proj_bias": True,
                "mamba_conv_bias": False,
                "rms_norm_eps": 1e-3,
            }
            | {"mamba_dt_rank": 3},
            window=101,
        ),
    ],
    "recurrent_gemma": [
        Case("recurrent_gemma", "RecurrentGemma", GRIFFIN | {"num_key_value_heads": 1}),
        Case(
            "recurrent_gemma",
            "RecurrentGemma",
            GRIFFIN
            | {"num_hidden_layers": 3, "lru_width": 18, "num_attention_heads": 3, "num_key_value_heads": 3}
            | {"block_types": ["attention", "recurrent"], "logits_soft_cap": 2.0, "attention_bias": True}
            | {"attention_window_size": 100, "hidden_activation": "gelu", "rms_norm_eps": 1e-3}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}}
            | UNTIED
            | {"conv1d_width": 3},
        ),
    ],
}
