"""The operators of the CUDA library inside ONNX Runtime, against the definitions."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

pytestmark = pytest.mark.gpu
onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("streamssm.export", reason="the exporter holds the operators' definitions")

from one_node import DATA, assert_close, expected, one_node_model, single  # noqa: E402
from operators import CASES, case_name  # noqa: E402

from streamssm.backends.cuda_library import library as find_library  # noqa: E402

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def open_session(backend):
    import onnxruntime

    found = find_library()
    if isinstance(found, str):
        pytest.skip(found)

    def call(model, **options):
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        for name, value in options.items():
            setattr(settings, name, value)
        settings.register_custom_ops_library(os.fspath(found.path))
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers)

    return call


@pytest.fixture(scope="module")
def run(open_session):
    prototypes = {}

    @cache
    def session(operator, attributes):
        return open_session(one_node_model(prototypes[operator, attributes]))

    def call(case):
        key = case.operator, tuple(case.attributes.values())
        prototypes.setdefault(key, case)
        return session(*key).run(None, single(case))

    return call


FIRST = [next(c for c in CASES if c.operator == name and c.inputs[first].shape[1] > 2)
         for name, first in (("CausalConv1d", "x"), ("SelectiveScan", "x"), ("StateSpaceDual", "x"),
                             ("SlidingWindowAttention", "q"), ("LogMel", "x"))]  # fmt: skip


@pytest.mark.parametrize("case", FIRST, ids=case_name)
def test_node_is_not_inlined(case, open_session, tmp_path):
    path = tmp_path / "optimized.onnx"
    open_session(one_node_model(case), optimized_model_filepath=str(path))
    assert case.operator in [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_operator_is_the_definition(case, run):
    assert_close(run(case), expected(case), "float32")


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("case", FIRST, ids=case_name)
def test_data_in_16_bits(case, kind, open_session):
    from dataclasses import replace

    element = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[kind]
    rounded = {
        k: v.astype(HALVES[kind]).astype(np.float64) if k in DATA else v for k, v in case.inputs.items()
    }
    case = replace(case, inputs=rounded)
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
    feeds = {f"{name}_32" if name in DATA else name: value for name, value in single(case).items()}
    y, *states = open_session(model).run(None, feeds)
    wanted, *wanted_states = expected(case)
    assert_close([y], [wanted], kind)
    assert_close(states, wanted_states, "float32")


@pytest.mark.parametrize("case", FIRST, ids=case_name)
def test_a_wrong_shape_is_refused(case, open_session):
    feeds = single(case)
    name = list(feeds)[-1] if case.operator != "LogMel" else "filters"
    feeds[name] = np.concatenate([feeds[name], feeds[name]], axis=-1 if feeds[name].ndim > 1 else 0)
    if case.operator == "LogMel":
        feeds[name] = feeds[name][:-1]
    with pytest.raises(Exception, match="expected"):
        open_session(one_node_model(case)).run(None, feeds)
