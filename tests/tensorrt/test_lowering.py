"""Graphs in native operators: against the definitions, against every layer, and in form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from graphs import one_operator, session
from grid import GRID, items, make
from one_node import assert_close, expected, single
from onnx import TensorProto, helper, numpy_helper
from operators import CASES, Case, case_name, causal_conv1d, selective_scan, state_space_dual

from streamssm import tolerance
from streamssm.errors import ExportError
from streamssm.export.functions import function
from streamssm.export.graph import trace
from streamssm.tensorrt.dialect_precision import bfloat16, round_weights, write_out_products
from streamssm.tensorrt.lowering import IR, OPSET, lower
from streamssm.tensorrt.lowering_graph import Builder
from streamssm.tensorrt.lowering_ops import softplus

#: what a lowered graph is to be free of
REFUSED = {"Scan", "Loop", "If", "CumSum", "Softplus", "GRU", "LSTM", "CastLike"}


def run_one(case: Case) -> list[np.ndarray]:
    model = one_operator(case)
    first = model.graph.input[0]
    lowered = lower(model, first.name, 1, single(case)[first.name].shape[1]).model
    onnx.checker.check_model(lowered, full_check=True)
    open_session = session(lowered)
    wanted = {port.name for port in open_session.get_inputs()}
    found = open_session.run(None, {k: v for k, v in single(case).items() if k in wanted})
    return dict(zip([port.name for port in open_session.get_outputs()], found, strict=True))


LONGER = [selective_scan(T) for T in (4, 64, 65, 129)] + [state_space_dual(T) for T in (64, 128, 200)]
SOME = [case for case in CASES if next(iter(case.inputs.values())).shape[1]]


@pytest.mark.parametrize("case", [*SOME, *LONGER], ids=case_name)
def test_operators_equal_their_definitions(case: Case) -> None:
    names, wanted = function(case.operator).output, expected(case)
    found = run_one(case)
    full = [(name, y) for name, y in zip(names, wanted, strict=True) if y.size]
    assert set(found) == {name for name, _ in full}  # a state without elements is none
    if case.operator == "LogMel" and case.inputs["x"].max() < 1e-3:  # near eps: logarithms of rounding
        assert np.abs(found["y"] - wanted[0]).max() < 2e-3
        return
    assert_close([found[name] for name, _ in full], [y for _, y in full], "float32")


@pytest.mark.parametrize(
    "case", [causal_conv1d(5, K=4), selective_scan(17), state_space_dual(17)], ids=case_name
)
def test_padding_of_another_row_does_not_leak(case: Case) -> None:
    clean = run_one(case)
    first = next(iter(case.inputs))
    case.inputs[first][1] = np.nan
    poisoned = run_one(case)
    for name, value in clean.items():
        assert np.array_equal(value[0], poisoned[name][0])


def check_layer(name: str, lengths: tuple[int, ...]) -> None:
    """Three calls of each length with the state carried on, against the torch layer."""
    layer = make(name)
    y, _ = layer(items(layer, 1, 0))
    outputs = tuple(y) if isinstance(y, dict) else ("y",)
    model = trace(layer, "x", outputs, layer.vocabulary)
    for length in lengths:
        lowered = lower(model, "x", layer.hop, length * layer.hop).model
        onnx.checker.check_model(lowered, full_check=True)
        assert not {node.op_type for node in lowered.graph.node} & REFUSED
        _check_calls(layer, session(lowered), length, outputs)


def _check_calls(layer, open_session, length: int, outputs: tuple[str, ...]) -> None:
    state = layer.init_state(2)
    wanted_inputs = {port.name for port in open_session.get_inputs()}
    for call in range(3):
        x = items(layer, 2, length * layer.hop, seed=call)
        with torch.no_grad():
            y, following = layer(x, state)
        wanted = y if isinstance(y, dict) else {outputs[0]: y}
        wanted = {**wanted, **{f"next.{key}": value for key, value in following.items()}}
        feeds = {"x": x.numpy(), **{key: value.numpy() for key, value in state.items()}}
        found = open_session.run(None, {k: v for k, v in feeds.items() if k in wanted_inputs})
        names = [port.name for port in open_session.get_outputs()]
        for key, value in zip(names, found, strict=True):
            assert tolerance.within(value, wanted[key].numpy()), (key, call, length)
        assert set(names) == {key for key, value in wanted.items() if value.numel()}
        state = following


#: one of each kind of node that layers are made of
QUICK = [
    *("conv stride and dilation", "conv depthwise K 1", "log mel", "running norm", "mamba K 1"),
    *("mamba2 groups", "swa GQA", "swa W 1", "conv attention", "mamba heads", "moe", "moe sigmoid groups"),
    *("rg-lru", "gru 2 layers", "lstm", "audio model", "token model", "parallel"),
]


@pytest.mark.parametrize("name", QUICK)
def test_layers_at_a_step_and_in_short_chunks(name: str) -> None:
    check_layer(name, (1, 3, 17))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GRID if name not in QUICK])
def test_every_layer_at_a_step_and_in_short_chunks(name: str) -> None:
    check_layer(name, (1, 2, 9))


@pytest.mark.parametrize("name", QUICK)
def test_what_is_left_for_plugins_is_the_same_model(name: str) -> None:
    """Our nodes stay, for any length: with the bodies of the operators in place of plugins."""
    layer = make(name)
    y, _ = layer(items(layer, 1, 0))
    outputs = tuple(y) if isinstance(y, dict) else ("y",)
    model = trace(layer, "x", outputs, layer.vocabulary)
    lowered = lower(model, "x", layer.hop, None).model
    ours = {node.op_type for node in lowered.graph.node if node.domain}
    lowered.functions.extend(function(operator) for operator in sorted(ours))
    lowered.ir_version = 10
    for entry in lowered.opset_import:
        entry.version = 1 if entry.domain else 21
    opened = session(lowered)
    for length in (1, 3, 17):
        _check_calls(layer, opened, length, outputs)


@pytest.mark.parametrize("case", [selective_scan(513), state_space_dual(513)], ids=case_name)
def test_calls_too_long_to_write_out_are_refused(case: Case) -> None:
    with pytest.raises(ExportError, match="over 513 items of a call, 512 at most"):
        run_one(case)


def test_softplus_keeps_small_steps_and_large_ones() -> None:
    b = Builder(["x", "y"])
    softplus(b, "x", out="y")
    x = np.concatenate([np.linspace(-87, 87, 4001), [-1e4, 1e4, 0.0, -1e-6]]).astype(np.float32)
    graph = helper.make_graph(
        b.nodes,
        "softplus",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(value, name) for name, value in b.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    (found,) = session(model).run(None, {"x": x})
    wanted = np.logaddexp(0.0, x.astype(np.float64))
    assert (np.abs(found - wanted) <= 5e-7 * wanted + 1e-45).all()


# What is rounded, and what is not.


@pytest.fixture(scope="module")
def mamba() -> onnx.ModelProto:
    torch.manual_seed(0)
    from streamssm.export.layers import Embedding, Head, Mamba, Residual, Sequential

    table = Embedding(1024, 32)
    return trace(Sequential(table, Residual(Mamba(32)), Head(32, 1024, tied=table)), "x", ("y",), 1024)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_matrices_are_islands_and_the_rest_is_float32(mamba: onnx.ModelProto, precision: str) -> None:
    lowered = lower(mamba, "x", 1, 4)
    plain = lowered.model.ByteSize()
    round_weights(lowered.model, lowered.products, precision)
    graph = lowered.model.graph
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    half = {name for name, tensor in sizes.items() if tensor.data_type == kind}
    assert len([name for name in half if "proj" in name]) == 3  # dt_proj is too small to matter
    assert lowered.model.ByteSize() < 0.7 * plain
    # the table and the head share one matrix, stored once
    assert sum(1024 in tensor.dims for tensor in graph.initializer) == 1
    for value in (*graph.input[1:], *graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    readers = {
        name
        for node in graph.node
        if node.op_type not in ("Cast", "MatMul", "Gather", "Transpose")
        for name in node.input
    }
    assert not half & readers


def test_products_written_out_are_the_same_numbers(mamba: onnx.ModelProto) -> None:
    lowered = lower(mamba, "x", 1, 3, 2)
    feeds = {"x": np.arange(6).reshape(2, 3)}
    for value in lowered.model.graph.input[1:]:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    wanted = session(lowered.model).run(None, feeds)
    write_out_products(lowered.model.graph)
    assert "MatMul" not in {node.op_type for node in lowered.model.graph.node}
    for found, value in zip(session(lowered.model).run(None, feeds), wanted, strict=True):
        assert tolerance.within(found, value)
    halved = lower(mamba, "x", 1, 3, 2)
    round_weights(halved.model, halved.products, "fp16")
    before = sum(node.op_type == "MatMul" for node in halved.model.graph.node)
    write_out_products(halved.model.graph)
    left = [node for node in halved.model.graph.node if node.op_type == "MatMul"]
    assert 0 < len(left) < before
    assert all(name.endswith(".fp16") for node in left for name in node.input)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("products", [True, False])
def test_a_product_may_read_a_product(precision: str, products: bool) -> None:
    """Every tensor has one maker, and what is in 16 bits stays there up to the last product."""
    from streamssm.export.layers import Embedding, Head, Linear, Sequential

    torch.manual_seed(0)
    layer = Sequential(Embedding(64, 32), Linear(32, 64), Head(64, 32))
    lowered = lower(trace(layer, "x", ("y",), 64), "x", 1, 3)
    plain = session(lowered.model).run(None, {"x": np.arange(6).reshape(2, 3)})
    round_weights(lowered.model, lowered.products, precision)
    if not products:
        write_out_products(lowered.model.graph)
    onnx.checker.check_model(lowered.model, full_check=True)
    if precision == "fp16":  # the processor has no products of bfloat16
        found = session(lowered.model).run(None, {"x": np.arange(6).reshape(2, 3)})
        assert tolerance.within(found[0], plain[0], "float16")
    assert "Mul" not in {node.op_type for node in lowered.model.graph.node}  # none is in float32


@pytest.mark.parametrize("name", ["moe", "moe sigmoid groups", "mamba2 groups", "swa GQA"])
def test_layers_with_products_written_out(name: str) -> None:
    layer = make(name)
    model = trace(layer, "x", ("y",), layer.vocabulary)
    for length in (1, 5):
        lowered = lower(model, "x", layer.hop, length * layer.hop).model
        write_out_products(lowered.graph)
        assert "MatMul" not in {node.op_type for node in lowered.graph.node}
        _check_calls(layer, session(lowered), length, ("y",))


def test_a_weight_that_bfloat16_rounds_to_infinity_is_named(mamba: onnx.ModelProto) -> None:
    lowered = lower(mamba, "x", 1, 4)
    (tensor,) = (t for t in lowered.model.graph.initializer if t.name.endswith("in_proj.weight.T"))
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.finfo(np.float32).max
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ExportError, match="bf16 ends at"):
        round_weights(lowered.model, lowered.products, "bf16")


def test_a_weight_that_does_not_fit_is_named(mamba: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(mamba)
    (tensor,) = (value for value in model.graph.initializer if value.name.endswith("in_proj.weight.T"))
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = 1e6
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    lowered = lower(model, "x", 1, 4)
    with pytest.raises(ExportError, match=r"in_proj.weight.T' holds 1e\+06, fp16 ends at 65504"):
        round_weights(lowered.model, lowered.products, "fp16")
    round_weights(lowered.model, lowered.products, "bf16")


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    import ml_dtypes

    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values = np.concatenate([values, [0.0, -0.0, 1.00390625, 1.01171875, 3e38, -1e-40]]).astype(np.float32)
    assert np.array_equal(bfloat16(values), values.astype(ml_dtypes.bfloat16).view(np.uint16))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_products_are_exact_ones_with_their_numbers(bits: int) -> None:
    from streamssm.export.quantize_blocks import quantise

    rng = np.random.default_rng(bits)
    matrix = quantise(rng.standard_normal((70, 9)).astype(np.float32), bits, 32)
    sizes = {"K": 70, "N": 9, "bits": bits, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", **sizes)
    tensors = [numpy_helper.from_array(matrix.packed, "q"), numpy_helper.from_array(matrix.scale, "s")]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "items", size])
        for name, size in (("x", 70), ("y", 9))
    )
    model = helper.make_model(helper.make_graph([node], "one", [x], [y], tensors))
    values = rng.standard_normal((2, 3, 70)).astype(np.float32)
    (found,) = session(lower(model, "x", 1, 3).model).run(None, {"x": values})
    assert tolerance.within(found, values.astype(np.float64) @ matrix.restored().astype(np.float64))


def test_what_has_no_form_is_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        sum (float[batch, items, 2] x, float[batch, 2] h) => (float[batch, items, 2] y, float[batch, 2] n) {
          n, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = step (float[batch, 2] before, float[batch, 2] item)
              => (float[batch, 2] after, float[batch, 2] out) {
              after = Add (before, item)
              out = Identity (after)
            }> (h, x)
        }"""
    )
    with pytest.raises(ExportError, match="without a form for TensorRT: Scan; run it with backend"):
        lower(model, "x", 1, 4)
