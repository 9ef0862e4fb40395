"""Every kind of layer as a file, opened by the runtime: any split is byte-equal to the whole, on
native kernels and on the bodies in the file.

All variants of every layer are tested in torch (test_layers); here is one of each kind. With
the whole models of test_export this makes over a thousand random splits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from grid import make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splitting import assert_one_random_split_is_byte_equal

import streamssm
from streamssm.export import OutputSpec, export

KINDS = [
    *("linear", "gelu", "channel", "embedding", "head", "rms norm", "layer norm", "mlp", "delay"),
    *("conv dilation", "conv groups and stride", "conv depthwise", "log mel", "running norm"),
    *("mamba", "mamba2 groups", "mamba2 clipped", "swa GQA", "swa W 1", "gru 2 layers", "lstm"),
    *("residual with look-ahead", "heads"),
]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("layers")

    @cache
    def make_file(kind: str) -> Path:
        return export_layer(kind, folder / f"{KINDS.index(kind)}.onnx")

    return make_file


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, files: Callable, load: Callable) -> streamssm.Model:
    return load(files(request.param))


def export_layer(name: str, path: Path) -> Path:
    layer = make(name)
    tokens = layer.item_dtype == torch.int64
    with torch.no_grad():
        y, _ = layer(torch.zeros(1, layer.hop, *layer.item_shape, dtype=layer.item_dtype))
    outputs = tuple(OutputSpec(key) for key in y) if isinstance(y, dict) else (OutputSpec("y"),)
    kind = "tokens" if tokens else "features" if layer.item_shape else "samples"
    export(layer, path, kind=kind, vocabulary=layer.vocabulary if tokens else None, outputs=outputs)
    return path


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_split_is_byte_equal(model: streamssm.Model, data: st.DataObject) -> None:
    assert_one_random_split_is_byte_equal(model, data)
