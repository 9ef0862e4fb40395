from __future__ import annotations

import functools

import numpy as np
import pytest
from toy_models import TOYS, Toy

import streamssm


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """``opened(name)``: a toy and the model of its file, made once."""
    folder = tmp_path_factory.mktemp("toys")

    @functools.cache
    def make(name: str) -> tuple[Toy, streamssm.Model]:
        toy = TOYS[name]()
        return toy, streamssm.load(toy.write(folder))

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(0)
