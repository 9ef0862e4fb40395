from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from models import CONFIGS, export_model

import streamssm
from streamssm.native.library import SWITCH, library

#: ways to run a model, each with the value of STREAMSSM_KERNELS that asks for it
KERNELS = {"fused": "on", "native": "unfused", "plain": "off"}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three whole models as files."""
    folder = tmp_path_factory.mktemp("models")
    return {name: export_model(name, folder) for name in CONFIGS}


@pytest.fixture(scope="module", params=KERNELS)
def load(request: pytest.FixtureRequest) -> Callable[[Path], streamssm.Model]:
    """``load(path)``: the model on native kernels with and without fusion, and on the plain-ONNX
    bodies in its file."""
    way = request.param
    if way != "plain" and isinstance(library(), str):
        pytest.skip(str(library()))

    def open_model(path: Path) -> streamssm.Model:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SWITCH, KERNELS[way])
            model = streamssm.load(path)
        if way == "native" and "no operator" in model.kernels:
            pytest.skip(f"the same as plain: {model.kernels}")
        if way == "fused" and "fused" not in model.kernels:
            pytest.skip(f"the same as native: {model.kernels}")
        assert model.kernels.startswith("plain" if way == "plain" else "native"), model.kernels
        return model

    return open_model
