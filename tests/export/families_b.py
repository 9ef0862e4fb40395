"""Two odd small configurations of each family that mixes Mamba with attention: odd head counts, groups,
tied and untied heads, biases on and off, every multiplier away from one, windows below the sequence."""

from __future__ import annotations

from families import Case

UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
#: weights large enough for attention to be far from uniform, so that a wrong window shows
LARGE = {"initializer_range": 0.2}

ZAMBA = [
    Case(
        "zamba",
        "Zamba",
        TIED
        | LARGE
        | {"vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 5}
        | {"num_attention_heads": 3, "num_key_value_heads": 3, "rms_norm_eps": 1e-3}
        | {"n_mamba_heads": 3, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_dt_rank": 2}
        | {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"]},
        window=37,
    ),
    Case(
        "zamba",
        "Zamba",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 10, "intermediate_size": 14, "num_hidden_layers": 7}
        | {"num_attention_heads": 6, "attention_head_dim": 5, "num_key_value_heads": 2, "hidden_act": "silu"}
        | {"n_mamba_heads": 1, "mamba_d_state": 3, "mamba_expand": 3, "mamba_conv_bias": False}
        | {"mamba_proj_bias": True, "attn_layer_period": 2, "attn_layer_offset": 1},
        window=50,
    ),
]

ZAMBA2 = [
    Case(
        "zamba2",
        "Zamba2",
        TIED
        | LARGE
        | {"vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 6}
        | {"num_attention_heads": 3, "num_mem_blocks": 2, "use_mem_rope": True, "chunk_size": 16}
        | {"use_shared_attention_adapter": True, "adapter_rank": 5, "add_bias_linear": True}
        | {"n_mamba_heads": 6, "mamba_d_state": 5, "mamba_ngroups": 3, "time_step_min": 0.5}
        | {"layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "hybrid"]},
        window=37,
    ),
    Case(
        "zamba2",
        "Zamba2",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 10, "num_hidden_layers": 5, "hidden_act": "gelu_new"}
        | {"num_attention_heads": 5, "num_mem_blocks": 1, "adapter_rank": 3, "chunk_size": 32}
        | {"n_mamba_heads": 5, "mamba_d_state": 3, "mamba_d_conv": 3, "mamba_expand": 3}
        | {"layers_block_type": ["hybrid", "mamba", "hybrid", "mamba", "mamba"]},
        window=50,
    ),
]

BAMBA = [
    Case(
        "bamba",
        "Bamba",
        TIED
        | LARGE
        | {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "attn_layer_indices": [1]}
        | {"mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 5, "mamba_chunk_size": 16}
        | {"time_step_limit": (0.5, 1.5), "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        window=37,
    ),
    Case(
        "bamba",
        "Bamba",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 20, "intermediate_size": 14, "num_hidden_layers": 4}
        | {"num_attention_heads": 5, "num_key_value_heads": 5, "attn_layer_indices": [0, 3]}
        | {"mamba_n_heads": 5, "mamba_n_groups": 5, "mamba_d_state": 3, "mamba_chunk_size": 32}
        | {"mamba_d_conv": 3, "mamba_expand": 3, "rms_norm_eps": 1e-2}
        | {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False},
        window=50,
    ),
]

FALCON_H1 = [
    Case(
        "falcon_h1",
        "FalconH1",
        TIED
        | LARGE
        | {"vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "mamba_d_ssm": 18, "mamba_chunk_size": 16}
        | {"mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 5, "mamba_rms_norm": True}
        | {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}
        | {"embedding_multiplier": 2.5, "lm_head_multiplier": 0.6, "key_multiplier": 1.7}
        | {"attention_in_multiplier": 1.3, "attention_out_multiplier": 0.8, "mlp_multipliers": [0.7, 1.4]}
        | {"ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.9, "ssm_multipliers": [0.5, 1.5, 0.8, 1.3, 0.6]},
        window=37,
    ),
    Case(
        "falcon_h1",
        "FalconH1",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 20, "intermediate_size": 14, "num_hidden_layers": 3}
        | {"num_attention_heads": 5, "num_key_value_heads": 5, "mamba_d_ssm": None, "mamba_chunk_size": 32}
        | {"mamba_n_heads": 5, "mamba_n_groups": 1, "mamba_d_state": 3, "mamba_d_conv": 3, "mamba_expand": 3}
        | {"projectors_bias": True, "mamba_conv_bias": False, "time_step_limit": (0.3, 1.0)}
        | {"ssm_multipliers": [1.5, 0.5, 1.2, 0.7, 1.1], "key_multiplier": 0.5},
        window=50,
    ),
    Case(
        "falcon_h1",
        "FalconH1",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2}
        | {"num_attention_heads": 3, "num_key_value_heads": 3, "mamba_d_ssm": 30, "mamba_chunk_size": 32}
        | {"mamba_n_heads": 5, "mamba_n_groups": 5, "mamba_d_state": 3, "mamba_rms_norm": True}
        | {"mamba_norm_before_gate": False},
        window=50,
    ),
]

GRANITE_MOE_HYBRID = [
    Case(
        "granite_moe_hybrid",
        "GraniteMoeHybrid",
        TIED
        | LARGE
        | {"vocab_size": 37, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 3}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "layer_types": ["mamba", "attention", "mamba"]}
        | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 7}
        | {"mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 5, "mamba_chunk_size": 16}
        | {"embedding_multiplier": 2.5, "logits_scaling": 3.0, "residual_multiplier": 0.7}
        | {"attention_multiplier": 0.3, "position_embedding_type": "rope", "time_step_limit": (0.5, 1.5)},
        window=37,
    ),
    Case(
        "granite_moe_hybrid",
        "GraniteMoeHybrid",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 20, "intermediate_size": 14, "num_hidden_layers": 2}
        | {"num_attention_heads": 5, "num_key_value_heads": 5, "layer_types": ["attention", "mamba"]}
        | {"num_local_experts": 0, "shared_intermediate_size": 9, "rms_norm_eps": 1e-2}
        | {"mamba_n_heads": 5, "mamba_n_groups": 1, "mamba_d_state": 3, "mamba_d_conv": 3, "mamba_expand": 3}
        | {"mamba_chunk_size": 32, "attention_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False}
        | {"attention_multiplier": 0.5, "residual_multiplier": 1.2},
        window=50,
    ),
]

NEMOTRON_H = [
    Case(
        "nemotron_h",
        "NemotronH",
        UNTIED
        | LARGE
        | {"vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "chunk_size": 16}
        | {"layers_block_type": ["mamba", "moe", "attention", "mlp", "moe"]}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6, "layer_norm_epsilon": 1e-3}
        | {"mamba_num_heads": 6, "mamba_head_dim": 3, "n_groups": 2, "ssm_state_size": 5}
        | {"n_routed_experts": 9, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3}
        | {"moe_intermediate_size": 7, "moe_shared_expert_intermediate_size": 9, "moe_latent_size": 8}
        | {"routed_scaling_factor": 1.7, "mlp_bias": True},
        window=37,
    ),
    Case(
        "nemotron_h",
        "NemotronH",
        UNTIED
        | LARGE
        | {"vocab_size": 41, "hidden_size": 20, "intermediate_size": 14, "chunk_size": 32}
        | {"layers_block_type": ["attention", "moe", "mamba", "mlp"], "mlp_hidden_act": "silu"}
        | {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 7, "use_bias": True}
        | {"mamba_num_heads": 5, "mamba_head_dim": 3, "n_groups": 1, "ssm_state_size": 3, "conv_kernel": 3}
        | {"n_routed_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False}
        | {"moe_intermediate_size": 7, "moe_shared_expert_intermediate_size": 9, "use_conv_bias": False}
        | {"time_step_min": 0.5},
        window=50,
    ),
]

CASES: dict[str, list[Case]] = {
    "zamba": ZAMBA,
    "zamba2": ZAMBA2,
    "bamba": BAMBA,
    "falcon_h1": FALCON_H1,
    "granite_moe_hybrid": GRANITE_MOE_HYBRID,
    "nemotron_h": NEMOTRON_H,
}
