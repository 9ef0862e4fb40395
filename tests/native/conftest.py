from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamssm.native.library import Library
from streamssm.native.library import library as find_library

# cases, models and whole configurations are shared with the exporter's tests
sys.path.append(str(Path(__file__).parents[1] / "export"))


@pytest.fixture(scope="session")
def library() -> Library:
    """The library of this installation; without one there is nothing to test."""
    found = find_library()
    if isinstance(found, str):
        pytest.skip(found)
    return found
