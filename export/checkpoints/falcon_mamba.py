"""FalconMamba (Zuo et al. 2024): Mamba with a weightless RMSNorm on each of dt, B and C.

Tensors are named as those of :mod:`.mamba`.
"""

from __future__ import annotations

from streamssm.export.checkpoints.family import Family, Keys, Plan, no_window
from streamssm.export.checkpoints.mamba import transformers_model


def build(config: Keys, window: int | None) -> Plan:
    """Mamba's model with the norms inside the mixer."""
    no_window(window, "FalconMamba")
    eps = config.number("mixer_rms_eps", 1e-6, minimum=0)
    return transformers_model(config, inner_norm=eps, inner_weights=False)


FAMILY = Family("falcon_mamba", ("falcon_mamba",), build)
