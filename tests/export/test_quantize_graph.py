"""Finding and replacing linear layers, in a graph that has the cases torch's exporter does not write."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from streamssm.backends.cpu import import_onnxruntime
from streamssm.export.quantize_blocks import quantise
from streamssm.export.quantize_graph import linear_layers, with_matrices, with_quantised

# Two products with one matrix, which a Gather and the branch of an If read too; a matrix computed from
# a stored one; a product of three axes, and one whose constant comes first, which are no linear layers.
GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
main (float[b, t, 40] x, int64[i] index, bool choose)
  => (float[b, t, 12] y, float[b, t, 12] z, float[i, 12] rows, float[b, t, 9] turned, float[b, t, 12] chosen,
      float[3, t, 12] each, float[b, 9, t] left)
<int64[2] flat = {-1, 9}>
{
    y = MatMul (x, table)
    doubled = Add (x, x)
    z = MatMul (doubled, table)
    rows = Gather (table, index)
    reversed = Transpose <perm = [2, 1, 0]> (kernel)
    matrix = Reshape (reversed, flat)
    turned = MatMul (x, matrix)
    chosen = If (choose) <
        then_branch = one () => (float[b, t, 12] a) { a = MatMul (x, table) },
        else_branch = two () => (float[b, t, 12] c) { c = Identity (y) }>
    each = MatMul (x, stack)
    across = Transpose <perm = [0, 2, 1]> (x)
    left = MatMul (before, across)
}
"""
SHAPES = {"table": (40, 12), "kernel": (9, 1, 40), "stack": (3, 40, 12), "before": (9, 40)}


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    model = onnx.parser.parse_model(GRAPH)
    generator = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        value = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for name, width in (("y", 12), ("doubled", 40), ("matrix", None)):
        shape = ["b", None, width] if width else [40, 9]
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        model.graph.value_info.append(value)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, choose: bool = True) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((1, 5, 40)).astype(np.float32)
    return session.run(None, {"x": x, "index": np.array([3, 1]), "choose": np.array(choose)})


def test_layers_are_found_once_with_their_products(proto) -> None:
    table, turned = linear_layers(proto)
    assert (table.name, table.tensor, table.products) == ("table", "table", ("y", "z"))
    assert (turned.name, turned.tensor, turned.products) == ("kernel", "matrix", ("turned",))
    tensors = {value.name: numpy_helper.to_array(value) for value in proto.graph.initializer}
    assert (table.weight == tensors["table"]).all()
    assert (turned.weight == tensors["kernel"].transpose(2, 1, 0).reshape(-1, 9)).all()


def test_only_what_nothing_reads_any_more_is_dropped(proto) -> None:
    layers = linear_layers(proto)
    matrices = {layer.name: quantise(layer.weight, 8, 32) for layer in layers}
    for names, gone in ((("table",), set()), (("kernel",), {"kernel", "flat"})):
        changed = with_quantised(proto, layers, {name: matrices[name] for name in names})
        left = {value.name for value in changed.graph.initializer}
        before = {value.name for value in proto.graph.initializer}
        assert left == before - gone | {f"{name}.{part}" for name in names for part in ("q", "scale")}
        domains = [entry.domain for entry in changed.opset_import]
        assert domains == ["", "com.microsoft"]
        shapes = {value.name for value in changed.graph.value_info}
        assert shapes == {"y", "doubled", *(() if gone else ("matrix",))}
    assert [node.op_type for node in changed.graph.node].count("Reshape") == 0


@pytest.mark.parametrize("choose", [True, False])
def test_results_are_those_of_the_restored_matrices(proto, choose) -> None:
    layers = linear_layers(proto)
    matrices = {layer.name: quantise(layer.weight, 8, 32) for layer in layers}
    restored = {name: matrix.restored() for name, matrix in matrices.items()}
    wanted = run(with_matrices(proto, layers, restored), choose)
    found = run(with_quantised(proto, layers, matrices), choose)
    plain = run(proto, choose)
    for i, (a, b, before) in enumerate(zip(found, wanted, plain, strict=True)):
        assert np.abs(a - b).max() <= 0.02 * np.abs(b).max()
        same = i in (2, 5, 6) or (i == 4 and choose)  # rows, each, left; the branch that reads the table
        assert (b.tobytes() == before.tobytes()) == same
    assert run(with_quantised(proto, layers, {}), choose)[0].tobytes() == plain[0].tobytes()
