"""A model of one node of ours, with the function that defines it, made from a test case."""

from __future__ import annotations

import numpy as np
import onnx
from operators import Case

from streamssm import tolerance
from streamssm.export.functions import DOMAIN, OPSET, function
from streamssm.kernels import reference

#: the inputs that a half-precision model has in 16 bits; parameters and state stay float32
DATA = {"x", "dt", "B", "C", "z", "q", "k", "v"}


def expected(case: Case) -> list[np.ndarray]:
    return list(getattr(reference, case.reference_name)(*case.inputs.values(), **case.attributes))


def single(case: Case, dtype: np.dtype | type = np.float32) -> dict[str, np.ndarray]:
    return {k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in case.inputs.items()}


def assert_close(found: list[np.ndarray], wanted: list[np.ndarray], dtype: str) -> None:
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert tolerance.within(a, b, dtype), f"result {i}: errors {tolerance.error(a, b)}"


def one_node_model(case: Case, element: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """The data are of type ``element``."""
    proto = function(case.operator)
    helper = onnx.helper
    attributes = {k: int(v) if isinstance(v, bool) else v for k, v in case.attributes.items()}
    node = helper.make_node(case.operator, list(proto.input), list(proto.output), domain=DOMAIN, **attributes)

    def info(name: str, rank: int) -> onnx.ValueInfoProto:
        kind = element if name in DATA | {"y"} else onnx.TensorProto.FLOAT
        kind = onnx.TensorProto.INT64 if "position" in name else kind
        return helper.make_tensor_value_info(name, kind, [None] * rank)

    ranks = [value.ndim for value in expected(case)]
    graph = helper.make_graph(
        [node],
        "one",
        [info(name, value.ndim) for name, value in case.inputs.items()],
        [info(name, rank) for name, rank in zip(proto.output, ranks, strict=True)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[proto], opset_imports=opsets, ir_version=10)
