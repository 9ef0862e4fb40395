"""The operators of the library inside ONNX Runtime: against the definitions, cut anywhere, in place,
in 16 bits, on several threads; and what they refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from native_session import open_session, run_in_place
from one_node import DATA, assert_close, expected, one_node_model, single
from operators import (
    CASES,
    Case,
    case_name,
    causal_conv1d,
    log_mel,
    selective_scan,
    sliding_window_attention,
    state_space_dual,
)

from streamssm.export.functions import OPERATORS
from streamssm.native.library import Library

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: calls of a size that is shared between threads
LARGE = [
    causal_conv1d(2000, D=300),
    selective_scan(300, D=150, N=8),
    state_space_dual(200, H=8, P=32, G=2, N=32),
    sliding_window_attention(300, 64, 5, heads=(8, 4), dh=32, R=16),
    log_mel(60, 400, 160, n_fft=400, M=40),
]


@pytest.fixture(scope="module")
def run(library: Library):
    """``run(case)``: the results of the native operator."""

    @cache
    def session(operator: str, attributes: tuple) -> onnxruntime.InferenceSession:
        return open_session(one_node_model(prototypes[operator, attributes]), library)

    prototypes: dict = {}

    def call(case: Case) -> list[np.ndarray]:
        key = case.operator, tuple(case.attributes.values())
        prototypes.setdefault(key, case)
        return session(*key).run(None, single(case))

    return call


def of(operator: str) -> Case:
    """A case of the operator with some items."""
    return next(c for c in CASES if c.operator == operator and next(iter(c.inputs.values())).shape[1] >= 3)


@pytest.mark.parametrize("operator", OPERATORS)
def test_node_is_not_inlined(operator: str, library: Library, tmp_path: Path) -> None:
    path = tmp_path / "optimized.onnx"
    open_session(one_node_model(of(operator)), library, optimized_model_filepath=str(path))
    assert [node.op_type for node in onnx.load(path).graph.node] == [operator]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_operator_is_the_definition(case: Case, run) -> None:
    assert_close(run(case), expected(case), "float32")


def between_casts(case: Case, kind: str) -> onnx.ModelProto:
    """The node on data in 16 bits; the graph's own inputs and outputs stay float32."""
    element = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[kind]
    model = one_node_model(case, element)
    (node,) = model.graph.node
    nodes = [onnx.helper.make_node("Cast", [f"{x}_32"], [x], to=element) for x in node.input if x in DATA]
    nodes += [node, onnx.helper.make_node("Cast", ["y"], ["y_32"], to=onnx.TensorProto.FLOAT)]
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in DATA | {"y"}:
            value.name += "_32"
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def rounded(case: Case, kind: str) -> Case:
    def through(value: np.ndarray) -> np.ndarray:
        return value.astype(HALVES[kind]).astype(np.float64)

    return replace(case, inputs={k: through(v) if k in DATA else v for k, v in case.inputs.items()})


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("case", [*map(of, OPERATORS), *LARGE], ids=case_name)
def test_data_in_16_bits(case: Case, kind: str, library: Library) -> None:
    case = rounded(case, kind)
    session = open_session(between_casts(case, kind), library, threads=2)
    feeds = {f"{name}_32" if name in DATA else name: value for name, value in single(case).items()}
    y, *states = session.run(None, feeds)
    wanted, *wanted_states = expected(case)
    assert_close([y], [wanted], kind)
    assert_close(states, wanted_states, "float32")


@pytest.mark.parametrize("case", LARGE, ids=case_name)
def test_threads_do_not_change_a_byte(case: Case, library: Library) -> None:
    one, two = (open_session(one_node_model(case), library, threads) for threads in (1, 2))
    feeds = single(case)
    assert [a.tobytes() for a in one.run(None, feeds)] == [a.tobytes() for a in two.run(None, feeds)]
    assert_close(one.run(None, feeds), expected(case), "float32")


@pytest.mark.parametrize("case", [*map(of, OPERATORS), *LARGE], ids=case_name)
def test_state_may_be_written_in_place(case: Case, library: Library) -> None:
    session = open_session(one_node_model(case), library)
    feeds = single(case)
    names = list(feeds)[-case.states :]
    following = [output.name for output in session.get_outputs()][1:]
    wanted = session.run(None, feeds)
    found = run_in_place(session, feeds, dict(zip(following, names, strict=True)))
    assert [a.tobytes() for a in found] == [a.tobytes() for a in wanted]


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_session_serves_many_threads(operator: str, library: Library) -> None:
    """Streams of one model run in several threads, with frequencies and windows of their own."""
    session = open_session(one_node_model(of(operator)), library)
    feeds = [single(of(operator)) for _ in range(4)]
    for number, feed in enumerate(feeds):
        for name, value in feed.items():
            if value.dtype == np.float32:
                feed[name] = value * np.float32(1 + number / 8)
    wanted = [[a.tobytes() for a in session.run(None, feed)] for feed in feeds]

    def calls(number: int) -> bool:
        results = (session.run(None, feeds[number]) for _ in range(200))
        return all([a.tobytes() for a in result] == wanted[number] for result in results)

    with ThreadPoolExecutor(len(feeds)) as pool:
        assert all(pool.map(calls, range(len(feeds))))


CONV, SCAN, DUAL = causal_conv1d(3), selective_scan(3), state_space_dual(3)
ATTENTION, MEL = sliding_window_attention(3, 8, 1), log_mel(3)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape)


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        (CONV, {"weight": zeros(4, 5)}, "weight is [4, 5], expected [K, D] = [4, 6]"),
        (CONV, {"weight": zeros(0, 6)}, "state is [2, 3, 6], expected [B, K-1, D] = [2, -1, 6]"),
        (CONV, {"bias": zeros(7)}, "bias is [7], expected [D] = [6]"),
        (CONV, {"state": zeros(1, 3, 6)}, "state is [1, 3, 6], expected [B, K-1, D] = [2, 3, 6]"),
        (CONV, {"state": zeros(2, 2, 6)}, "state is [2, 2, 6]"),
        (SCAN, {"dt": zeros(2, 2, 6)}, "dt is [2, 2, 6], expected [B, T, D] = [2, 3, 6]"),
        (SCAN, {"A": zeros(5, 5)}, "A is [5, 5], expected [N, D] = [5, 6]"),
        (SCAN, {"B": zeros(2, 3, 4)}, "B is [2, 3, 4], expected [B, T, N] = [2, 3, 5]"),
        (SCAN, {"C": zeros(2, 4, 5)}, "C is [2, 4, 5]"),
        (SCAN, {"D": zeros(1)}, "D is [1], expected [D] = [6]"),
        (SCAN, {"dt_bias": zeros(1)}, "dt_bias is [1]"),
        (SCAN, {"z": zeros(1, 3, 6)}, "z is [1, 3, 6]"),
        (SCAN, {"state": zeros(2, 6, 5)}, "state is [2, 6, 5], expected [B, N, D] = [2, 5, 6]"),
        (DUAL, {"dt": zeros(2, 3, 3)}, "dt is [2, 3, 3], expected [B, T, H] = [2, 3, 4]"),
        (DUAL, {"A": zeros(3)}, "A is [3], expected [H] = [4]"),
        (DUAL, {"B": zeros(2, 2, 2, 5)}, "B is [2, 2, 2, 5], expected [B, T, G, N] = [2, 3, 2, 5]"),
        (DUAL, {"B": zeros(2, 3, 3, 5), "C": zeros(2, 3, 3, 5)}, "4 heads of x cannot share 3 groups of B"),
        (DUAL, {"B": zeros(2, 3, 0, 5), "C": zeros(2, 3, 0, 5)}, "4 heads of x cannot share 0 groups of B"),
        (DUAL, {"C": zeros(2, 3, 1, 5)}, "C is [2, 3, 1, 5]"),
        (DUAL, {"D": zeros(4, 4)}, "D is [4, 4], expected [H, P] = [4, 3]"),
        (DUAL, {"state": zeros(2, 4, 3, 5)}, "state is [2, 4, 3, 5], expected [B, H, N, P] = [2, 4, 5, 3]"),
        (ATTENTION, {"k": zeros(2, 3, 4, 6)}, "k is [2, 3, 4, 6], expected [B, T, Hkv, dh] = [2, 3, 2, 6]"),
        (ATTENTION, {"v": zeros(2, 2, 2, 6)}, "v is [2, 2, 2, 6]"),
        (ATTENTION, {"q": zeros(2, 3, 3, 6)}, "3 heads of q cannot share 2 heads of k"),
        (ATTENTION, {"inv_freq": zeros(4)}, "inv_freq turns 8 dimensions, a head has 6"),
        (
            ATTENTION,
            {"key": zeros(2, 2, 7, 6)},
            "value is [2, 2, 8, 6], expected [B, Hkv, W, dh] = [2, 2, 7, 6]",
        ),
        (ATTENTION, {"key": zeros(2, 2, 0, 6), "value": zeros(2, 2, 0, 6)}, "a window of no items"),
        (ATTENTION, {"position": np.zeros(3, np.int64)}, "position is [3], expected [B] = [2]"),
        (ATTENTION, {"position": np.array([0, -1])}, "position[1] is -1"),
        (ATTENTION, {"position": np.array([2**63 - 9, 0])}, "position[0] is 9223372036854775799"),
        (MEL, {"x": zeros(2, 25)}, "x is [2, 25], expected a multiple of hop = 8"),
        (MEL, {"past": zeros(2, 3)}, "past is [2, 3], expected at least 12"),
        (MEL, {"window": zeros(30)}, "window is [30], expected 1 to n_fft = 20"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_shapes(case: Case, changed: dict, message: str, library: Library) -> None:
    session = open_session(one_node_model(case), library)
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        session.run(None, single(replace(case, inputs=case.inputs | changed)))
    assert message in str(caught.value)
    session.run(None, single(case))  # it is as it was


@pytest.mark.parametrize(
    ("case", "attribute"),
    [(CONV, "silu"), (ATTENTION, "scale"), (MEL, "hop")],
    ids=lambda value: str(value)[:0],
)
def test_missing_attribute_is_refused_at_load(case: Case, attribute: str, library: Library) -> None:
    model = one_node_model(case)
    (node,) = model.graph.node
    kept = [a for a in node.attribute if a.name != attribute]
    node.ClearField("attribute")
    node.attribute.extend(kept)
    with pytest.raises(Exception, match=attribute):
        open_session(model, library)
