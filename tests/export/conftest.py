from __future__ import annotations

from pathlib import Path

import pytest
from models import CONFIGS, export_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three whole models as files."""
    folder = tmp_path_factory.mktemp("models")
    return {name: export_model(name, folder) for name in CONFIGS}
