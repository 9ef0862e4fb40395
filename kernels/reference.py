"""Float64 definitions of everything that streamssm computes.

This is the reference that all other implementations (PyTorch, ONNX functions, native
kernels) are tested against. It is written to be read and checked, not to be fast.

Letters, the same everywhere:

    B  batch            T  items in this call     D  channels
    N  state size       K  convolution width      R  rotary dims of a head
    H  heads            P  head dim               G  groups (of heads that share B and C)
    W  window           Hq, Hkv, dh  query heads, key/value heads, their dim

``B`` and ``C`` are also the field's names of the input and output projections of a
state-space model, and ``A`` and ``D`` of its decay and its skip connection; the shape
given with each argument tells them apart.

Conventions:

- Arrays may come in any dtype and are computed and returned in float64; a position is int64.
- Each op takes the state before the call and returns the state after it, never changing
  the one it was given. All states start at zero.
- ``name`` takes a whole sequence ``[B, T, ...]`` for any T >= 0; ``name_step`` takes one
  item ``[B, ...]``. The two are independent formulations wherever the mathematics offers
  two, so that their equality is evidence for both.

The ops live in ``reference_ops`` and ``reference_attention``, what is built from them in
``reference_layers``, the front end in ``reference_mel``; import all of them from here.
"""

from .reference_attention import (
    rotary,
    rotary_frequencies,
    sliding_window_attention,
    sliding_window_attention_step,
)
from .reference_layers import (
    gru,
    gru_step,
    lstm,
    lstm_step,
    mamba2_mixer,
    mamba2_mixer_step,
    mamba_mixer,
    mamba_mixer_step,
    rms_norm,
)
from .reference_mel import hann, log_mel, log_mel_step, mel_filters
from .reference_ops import (
    causal_conv1d,
    causal_conv1d_step,
    selective_scan,
    selective_scan_step,
    sigmoid,
    silu,
    softplus,
    state_space_dual,
    state_space_dual_step,
)

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "gru",
    "gru_step",
    "hann",
    "log_mel",
    "log_mel_step",
    "lstm",
    "lstm_step",
    "mamba2_mixer",
    "mamba2_mixer_step",
    "mamba_mixer",
    "mamba_mixer_step",
    "mel_filters",
    "rms_norm",
    "rotary",
    "rotary_frequencies",
    "selective_scan",
    "selective_scan_step",
    "sigmoid",
    "silu",
    "sliding_window_attention",
    "sliding_window_attention_step",
    "softplus",
    "state_space_dual",
    "state_space_dual_step",
]
