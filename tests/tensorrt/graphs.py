"""Graphs of one operator, and ONNX Runtime to run what they become."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from one_node import expected, single
from onnx import TensorProto, helper, numpy_helper
from operators import Case

from streamssm.export.functions import DOMAIN, function

#: the inputs of an operator that a model computes; the rest are its weights
DATA = {"x", "dt", "B", "C", "z", "q", "k", "v"}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def port(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, ["batch", *value.shape[1:]])


def one_operator(case: Case) -> onnx.ModelProto:
    """As the exporter writes it: data and states are inputs of fixed size but for the batch, weights
    are constants."""
    proto, inputs = function(case.operator), single(case)
    attributes = {k: int(v) if isinstance(v, bool) else v for k, v in case.attributes.items()}
    node = helper.make_node(case.operator, list(proto.input), list(proto.output), domain=DOMAIN, **attributes)
    computed = DATA | set(list(inputs)[-case.states :])
    graph = helper.make_graph(
        [node],
        "one",
        [port(name, value) for name, value in inputs.items() if name in computed],
        [port(n, y.astype(np.float32)) for n, y in zip(proto.output, expected(case), strict=True)],
        [numpy_helper.from_array(value, name) for name, value in inputs.items() if name not in computed],
    )
    for value in graph.output:
        if "position" in value.name:
            value.type.tensor_type.elem_type = TensorProto.INT64
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[proto], opset_imports=opsets, ir_version=10)
