"""StateSpaceDual through ONNX Runtime's own LinearAttention: the same results and the same promise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from models import export_model
from one_node import assert_close, expected, one_node_model, single
from operators import CASES, Case, case_name, state_space_dual

import streamssm
from streamssm import tolerance
from streamssm.native import library, linear_attention
from streamssm.native.linear_attention import OPERATOR, available, lower, lower_file, pays
from streamssm.onnx_file import read_model_file

pytestmark = pytest.mark.skipif(not available(onnxruntime), reason="this onnxruntime has no LinearAttention")

WIDE = [
    state_space_dual(40, H=6, P=64, G=3, N=128),
    state_space_dual(70, H=3, P=32, G=3, N=37, huge=True),
    state_space_dual(33, H=4, P=64, G=1, N=64),
]
DUAL = [case for case in CASES if case.operator == "StateSpaceDual"] + WIDE


def shaped_model(case: Case) -> onnx.ModelProto:
    """The node with the sizes of an item known, as an exported model has them."""
    model = one_node_model(case)
    for port in model.graph.input:
        for axis, size in enumerate(case.inputs[port.name].shape):
            if axis >= 2 or port.name in ("A", "D") or (port.name == "state" and axis):
                port.type.tensor_type.shape.dim[axis].dim_value = size
    return model


def open_model(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def lowered(case: Case) -> onnxruntime.InferenceSession:
    model = lower(shaped_model(case).SerializeToString())
    assert model is not None
    graph = onnx.load_from_string(model).graph
    assert [node.op_type for node in graph.node].count(OPERATOR) == 1
    assert "StateSpaceDual" not in {node.op_type for node in graph.node}
    return open_model(model)


@pytest.mark.parametrize("case", DUAL, ids=case_name)
def test_it_is_the_definition(case: Case) -> None:
    assert_close(lowered(case).run(None, single(case)), expected(case), "float32")


@pytest.mark.parametrize("case", [DUAL[4], *WIDE], ids=case_name)
def test_any_split_is_byte_equal(case: Case) -> None:
    session, feeds = lowered(case), single(case)
    whole, final = session.run(None, feeds)
    T, state, pieces = whole.shape[1], feeds["state"], []
    for first, last in pairwise([0, 0, 1, T // 2, T - 1, T]):
        part = {k: v[:, first:last] if k in ("x", "dt", "B", "C") else v for k, v in feeds.items()}
        y, state = session.run(None, part | {"state": state})
        pieces.append(y)
    assert np.concatenate(pieces, axis=1).tobytes() == whole.tobytes()
    assert state.tobytes() == final.tobytes()


@pytest.mark.parametrize("case", [state_space_dual(3, P=28, N=128), state_space_dual(3, P=64, N=256)])
def test_sizes_that_would_lose_are_left(case: Case) -> None:
    assert lower(shaped_model(case).SerializeToString()) is None


def test_unknown_sizes_are_left() -> None:
    assert lower(one_node_model(state_space_dual(3)).SerializeToString()) is None


@pytest.mark.parametrize(
    ("P", "N", "wanted"), [(64, 128, True), (64, 129, False), (48, 64, False), (3, 16, True)]
)
def test_rule(P: int, N: int, wanted: bool) -> None:
    assert pays(P, N) is wanted


def test_without_the_operator_the_bodies_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    available.cache_clear()
    monkeypatch.setattr(linear_attention, "OPERATOR", "NoSuchAttention")
    assert not available(onnxruntime)
    assert lower_file(read_model_file(export_model("sensor", tmp_path)), onnxruntime) is None
    available.cache_clear()


def test_it_is_taken_where_the_library_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = export_model("sensor", tmp_path)
    x = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    monkeypatch.setattr(library, "library", lambda: "there is none")
    monkeypatch.delenv(library.SWITCH, raising=False)
    model = streamssm.load(path)
    assert model.kernels == "plain ONNX (LinearAttention): there is none"
    whole, stream = model.scan(x, block=4), model.stream(block=4)
    parts = [stream.push(part) for part in np.split(x, [1, 1, 7, 30])] + [stream.flush()]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    monkeypatch.setenv(library.SWITCH, "off")
    plain = streamssm.load(path)
    assert plain.kernels == "plain ONNX: STREAMSSM_KERNELS=off"
    assert tolerance.within(whole, plain.scan(x, block=4))


def test_a_model_gives_the_same_either_way(tmp_path: Path) -> None:
    path = export_model("sensor", tmp_path)
    file = read_model_file(path)
    model = lower_file(file, onnxruntime)
    assert model is not None
    plain, other = open_model(path.read_bytes()), open_model(model)
    rng = np.random.default_rng(0)
    feeds = {file.manifest.input.name: rng.standard_normal((2, 37, 5)).astype(np.float32)}
    feeds |= {s.name: np.zeros((2, *s.shape), s.dtype) for s in file.manifest.states}
    for a, b in zip(other.run(None, feeds), plain.run(None, feeds), strict=True):
        assert tolerance.within(a, b), tolerance.error(a, b)
    assert lower(streamssm.load("vad").path.read_bytes()) is None
