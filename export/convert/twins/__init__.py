"""Streaming twins of other people's layers, one file for each source. They share the weights."""

from __future__ import annotations

from streamssm.export.convert.twins import mamba_ssm, mambapy, torch_rnn, transformers_mixers

SOURCES = (torch_rnn, mamba_ssm, mambapy, transformers_mixers)


def register_all() -> None:
    """Make all of them known."""
    for source in SOURCES:
        source.register_twins()
