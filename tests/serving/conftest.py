"""Models for the server's tests, opened once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for _room in ("runtime", "cli"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _room))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Toys by name: those of the runtime, voice (samples at 8 kHz), and fragile (tokens; it fails on 5
    to 8)."""
    from voice_toy import TOYS, voice_toy

    import streamssm
    from streamssm.manifest import Input

    folder = tmp_path_factory.mktemp("served")
    fragile = Input("ids", "tokens", "int64", (), vocabulary=9)
    paths = {name: toy().write(folder) for name, toy in TOYS.items()}
    paths |= {
        "voice": voice_toy().write(folder),
        "fragile": TOYS["tokens"]().write(folder, input=fragile, name="fragile"),
    }
    return {name: streamssm.load(path) for name, path in paths.items()}


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _quick_end(monkeypatch):
    """A pool ends sooner: these tests open hundreds."""
    monkeypatch.setattr("streamssm.stepping._PATIENCE", 0.01)
