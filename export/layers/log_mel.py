"""Log-mel front end: the definition is ``streamssm.kernels.reference.log_mel``.

B batch, T samples, F = T / hop frames, M mel bands. Frame f is the ``window`` samples that end
with hop f: nothing later is seen, and zeros stand before the start. Periodic Hann window, power
spectrum, triangular HTK mel filters of peak 1, natural logarithm of power plus eps.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StateSpec, StreamingLayer, require_whole
from streamssm.export.layers.windows import history
from streamssm.export.ops import log_mel
from streamssm.kernels.reference import hann, mel_filters


class LogMel(StreamingLayer):
    """Samples x [B, T] -> y [B, T / hop, n_mels].

    State: ``past`` [B, history], the samples that the next frame needs, in whole hops. ``n_fft`` defaults
    to the window, ``f_max`` to half the sample rate. ``eps`` is added to the mel power.
    """

    def __init__(
        self,
        sample_rate: float,
        window: int,
        hop: int,
        n_mels: int,
        n_fft: int | None = None,
        f_min: float = 0.0,
        f_max: float | None = None,
        eps: float = 1e-6,
    ):
        super().__init__()
        n_fft = window if n_fft is None else n_fft
        require_whole("LogMel", window=window, hop=hop, n_mels=n_mels, n_fft=n_fft)
        if hop > window or window > n_fft:
            raise LayerError(f"LogMel: hop {hop} <= window {window} <= n_fft {n_fft} must hold")
        if not eps >= np.finfo(np.float32).tiny:
            raise LayerError(f"LogMel: eps = {eps} must be positive in float32, or silence has no logarithm")
        self.output_ratio = Fraction(1, hop)
        self.n_fft, self.eps = n_fft, eps
        self.past = history(window, hop)
        filters = _filters(sample_rate, n_fft, n_mels, f_min, sample_rate / 2 if f_max is None else f_max)
        self.register_constant("window", torch.from_numpy(hann(window)))
        self.register_constant("filters", torch.from_numpy(filters))

    def state_spec(self) -> dict[str, StateSpec]:
        """Past samples; none when frames do not overlap."""
        return {"past": StateSpec((self.past,))} if self.past else {}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Frames, spectrum, bands: in the dtype of the constants, float32 or better."""
        state = self.start(x, state)
        past = (state["past"] if self.past else x[:, :0]).to(self.window.dtype)
        y, past = log_mel(x, self.window, self.filters, past, self.hop, self.n_fft, self.eps)
        return y, ({"past": past.to(state["past"].dtype)} if self.past else state)


def _filters(sample_rate: float, n_fft: int, n_mels: int, f_min: float, f_max: float) -> np.ndarray:
    """[n_fft // 2 + 1, n_mels], float64.

    Raises:
        LayerError: the range is impossible, or a band lies between two bins and is always silent.
    """
    try:
        filters = mel_filters(sample_rate, n_fft, n_mels, f_min, f_max)
    except ValueError as error:
        raise LayerError(f"LogMel: {error}") from error
    silent = np.flatnonzero(filters.max(axis=0) == 0)
    if silent.size:
        raise LayerError(
            f"LogMel: band {silent[0]} of {n_mels} holds no bin of an FFT of {n_fft}; "
            "use fewer bands or a longer n_fft"
        )
    return filters
