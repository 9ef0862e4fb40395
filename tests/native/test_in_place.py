"""Streams whose steps overwrite the state they read: the same bytes as those whose steps do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import streamssm
from streamssm.errors import BackendError, StreamTornError
from streamssm.export import build, export, model_options
from streamssm.native.library import SWITCH, Library

TOKENS = {"input": {"kind": "tokens", "vocabulary": 11}, "d_model": 16, "head": {"size": 3}}
FEATURES = {"input": {"kind": "features", "size": 5}, "d_model": 16, "head": {"size": 3}}
#: config, and the mixers whose states may be overwritten: those of the last node, unless another
#: node runs after it or beside it
CASES = {
    "mamba": (TOKENS | {"pattern": ["mamba"]}, {"0"}),
    "mamba2": (FEATURES | {"pattern": ["mamba2", "mamba"], "mamba2": {"headdim": 8}}, {"0", "1"}),
    "attention before": (
        FEATURES | {"pattern": ["mamba", "swa", "mamba"], "swa": {"window": 5, "num_heads": 2}},
        {"2"},
    ),
    "attention after": (
        FEATURES | {"pattern": ["mamba", "swa"], "swa": {"window": 5, "num_heads": 2}, "norm": "layer"},
        set(),
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    paths = {name: tmp_path_factory.mktemp("in_place") / "m.onnx" for name in CASES}
    for name, (config, _) in CASES.items():
        export(build(config).eval(), paths[name], **model_options(config))
    return paths


@pytest.fixture(params=CASES)
def opened(request: pytest.FixtureRequest, files: dict[str, Path], library: Library) -> streamssm.Model:
    return streamssm.load(files[request.param])


def draw(model: streamssm.Model, items: int) -> np.ndarray:
    generator = np.random.default_rng(items)
    if model.manifest.input.kind == "tokens":
        return generator.integers(0, 11, items)
    return generator.standard_normal((items, 5)).astype(np.float32)


def shared(model: streamssm.Model) -> set[str]:
    lane = model.backend.lane(1, 1, in_place=True)
    pairs = zip(model.manifest.states, *lane._sides, strict=True)
    return {state.name.split(".")[2] for state, a, b in pairs if np.shares_memory(a, b)}


@pytest.mark.parametrize("block", [1, 4, 200])
def test_overwriting_changes_no_byte(opened: streamssm.Model, block: int) -> None:
    usual, in_place = (opened.stream(block, in_place=flag) for flag in (False, True))
    for items in (7, 0, 1, 203, 4):
        x = draw(opened, items)
        assert usual.push(x).tobytes() == in_place.push(x).tobytes()
        assert usual.snapshot() == in_place.snapshot()
    twin, resumed = in_place.fork(), opened.resume(in_place.snapshot(), in_place=True)
    tail = usual.flush().tobytes()
    assert tail == twin.flush().tobytes() == resumed.flush().tobytes() == in_place.flush().tobytes()


def test_only_states_that_nothing_can_spoil_are_overwritten(
    request: pytest.FixtureRequest, opened: streamssm.Model
) -> None:
    assert shared(opened) == CASES[request.node.callspec.params["opened"]][1]


def test_plain_operators_overwrite_nothing(opened: streamssm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("off", "unfused"):
        monkeypatch.setenv(SWITCH, switch)
        model = streamssm.load(opened.path)
        assert shared(model) == set()
        x = draw(model, 20)
        assert model.stream(in_place=True).push(x).tobytes() == model.stream().push(x).tobytes()


@pytest.mark.parametrize("opened", ["mamba"], indirect=True)
def test_a_refused_token_leaves_the_stream_as_it_was(opened: streamssm.Model) -> None:
    stream = opened.stream(in_place=True)
    stream.push(draw(opened, 5))
    before = stream.snapshot()
    stream._lane.x[...] = 99  # past the check of the chunk: the graph fails on it
    with pytest.raises(BackendError, match="the stream is as it was"):
        stream._lane.step()
    assert stream.snapshot() == before


@pytest.mark.parametrize("opened", ["mamba2"], indirect=True)
def test_an_interrupted_step_is_noticed(opened: streamssm.Model) -> None:
    def cut_short() -> None:
        call()
        raise KeyboardInterrupt

    stream, x = opened.stream(1, in_place=True), draw(opened, 1)
    stream.push(x)
    saved, calls = stream.state(), stream._lane._calls
    call = calls[stream._lane._side]
    stream._lane._calls = (cut_short, cut_short)
    with pytest.raises(KeyboardInterrupt):
        stream.push(x)
    stream._lane._calls = calls
    for refused in (lambda: stream.push(x), stream.snapshot, stream.fork, stream.flush):
        with pytest.raises(StreamTornError, match="reset"):
            refused()
    stream.restore(saved)
    wanted = opened.stream(1)
    assert stream.push(x).tobytes() == wanted.push(np.concatenate([x, x]))[1:].tobytes()
    stream.reset()
    assert stream.push(x).tobytes() == opened.stream(1).push(x).tobytes()
