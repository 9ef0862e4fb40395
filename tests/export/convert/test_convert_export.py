"""A user's model that no layer list knows: converted, exported, run by the runtime, split at will."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import user_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import streamssm
from streamssm import tolerance
from streamssm.export import OutputSpec, convert, export
from streamssm.manifest import Manifest

MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "u": (user_models.UNet, {"item_shape": (3,), "time": -1}),
    "centred": (user_models.Centred, {"item_shape": (3,), "window": 7, "lookahead": 3}),
}
SPLITS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Manifest, Path]:
    torch.manual_seed(0)
    build, options = MODELS[request.param]
    layer = convert(build(), **options)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    outputs = [OutputSpec(name) for name in layer.output_names]
    return layer, export(layer, path, outputs=outputs), path


def test_the_file_says_what_the_stream_is(exported: tuple) -> None:
    layer, manifest, _ = exported
    assert (manifest.input.hop, manifest.lookahead) == (layer.hop, layer.lookahead)
    assert manifest.window_imposed == layer.window_imposed
    ratios = {output.name: output.per_item for output in manifest.outputs}
    assert ratios == {name: layer.ratio_of(name) for name in layer.output_names}
    assert {state.name for state in manifest.states} == set(layer.state_spec())


def test_the_file_is_certified_against_the_users_own_module(exported: tuple) -> None:
    errors = {error.name: error.max_rel for error in exported[1].errors}
    assert {f"{how} against the original" for how in ("whole", "random splits", "single steps")} <= set(
        errors
    )
    assert max(errors.values()) < 2e-5


def test_the_runtime_equals_a_plain_call_of_the_module(exported: tuple) -> None:
    layer, manifest, path = exported
    x = np.random.default_rng(0).standard_normal((60 * layer.hop, 3)).astype(np.float32)
    found = streamssm.load(path).scan(x, block=layer.hop)
    found = found if isinstance(found, dict) else {manifest.outputs[0].name: found}
    if layer.window_imposed is None:
        with torch.no_grad():
            whole = layer.model.eval()(torch.from_numpy(x.T.copy())[None])
        wanted = {"mask": whole["mask"][0], "label.0": whole["label"][0][0]}
    else:
        with torch.no_grad():
            wanted = {"output": layer.eval().reference(torch.from_numpy(x)[None])[0, layer.lookahead :]}
    for name, value in wanted.items():
        y = found[name][: len(value)]
        assert tolerance.within(y, value.numpy(), "float32"), (name, tolerance.error(y, value.numpy()))


@SPLITS
@given(data=st.data())
def test_any_split_is_byte_equal(exported: tuple, data: st.DataObject) -> None:
    from splitting import assert_one_random_split_is_byte_equal

    assert_one_random_split_is_byte_equal(streamssm.load(exported[2]), data)


def test_the_last_items_see_zeros_after_the_end(exported: tuple) -> None:
    """With a look-ahead the outputs at the end are those of the input followed by zeros."""
    layer, _, path = exported
    if not layer.lookahead:
        pytest.skip("no look-ahead")
    x = np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32)
    longer = np.concatenate([x, np.zeros((layer.lookahead, 3), np.float32)])
    with torch.no_grad():
        wanted = layer.eval().reference(torch.from_numpy(longer)[None])[0, layer.lookahead :]
    found = streamssm.load(path).scan(x)
    assert len(found) == 40
    assert tolerance.within(found, wanted.numpy(), "float32")


def test_a_model_of_one_module_has_one_output(tmp_path: Path) -> None:
    layer = convert(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), item_shape=(3,))
    manifest = export(layer, tmp_path / "m.onnx")
    assert not manifest.states
    assert manifest.outputs[0].shape == (4,)
