"""transformers, eager, in float32."""

from __future__ import annotations

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from sidebyside.shapes import Shape, Weights, load_weights
from sidebyside.wire import CannotError, TokenPeer, serve


def config(shape: Shape) -> MambaConfig | Mamba2Config:
    """Its own configuration of the shape."""
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.d_model,
        "state_size": shape.d_state,
        "num_hidden_layers": shape.layers,
        "layer_norm_epsilon": shape.eps,
        "expand": shape.expand,
        "conv_kernel": shape.d_conv,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if shape.kind == "mamba":
        return MambaConfig(**common, time_step_rank=shape.dt_rank)
    return Mamba2Config(**common, num_heads=shape.heads, head_dim=shape.headdim, n_groups=shape.groups)


def build(shape: Shape, weights: Weights) -> torch.nn.Module:
    """The model with our weights, and nothing left at random."""
    kind = MambaForCausalLM if shape.kind == "mamba" else Mamba2ForCausalLM
    model = kind(config(shape)).eval()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    missing, unknown = model.load_state_dict(tensors, strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"missing {missing}, unknown {unknown}")
    model.tie_weights()
    return model


class Transformers(TokenPeer):
    """Its forward with its cache, as its own ``generate`` calls it."""

    versions = ("transformers", "torch")

    def open(self) -> None:
        if self.precision != "fp32":
            raise CannotError("its weights are float32 here; it has no quantised kernels for this CPU")
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.model = build(self.shape, load_weights(self.folder))

    def reset(self, size: int) -> None:
        self.cache = None

    def push(self, tokens, last: bool):
        ids = torch.from_numpy(tokens)[None]
        out = self.model(ids, cache_params=self.cache, use_cache=True, logits_to_keep=int(last))
        self.cache = out.cache_params
        return out.logits

    def logits(self, result):
        return result[0].numpy()

    def facts(self) -> dict[str, object]:
        return {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(Transformers)
