"""Functions that mix time in ways a stream can keep: one file for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from streamssm.export.convert.planner import Rule
from streamssm.export.convert.rules import (
    attention,
    embedding,
    indexing,
    joining,
    padding,
    shaping,
    transposed,
    windows,
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **attention.RULES,
        **embedding.RULES,
        **indexing.RULES,
        **joining.RULES,
        **padding.RULES,
        **shaping.RULES,
        **transposed.RULES,
        **windows.RULES,
    }
)
