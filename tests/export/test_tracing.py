"""Layers as ONNX, in ONNX Runtime, at lengths that tracing never saw."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from grid import items, make

from streamssm import tolerance
from streamssm.export.graph import trace

# variants that the whole models of test_export do not hold
TRACED = [
    *("delay", "conv stride 3", "conv groups and stride", "conv stride and dilation", "conv depthwise gelu"),
    *("log mel", "log mel no overlap", "mamba K 1", "mamba2 no norm", "swa no positions", "lstm 2 layers"),
    *("residual with look-ahead", "heads", "rg-lru", "recurrent block K 1", "conv attention", "moe"),
]
LENGTHS = (0, 1, 0, 3, 1, 17)


def open_session(layer, outputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = trace(layer, "x", outputs, layer.vocabulary).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", TRACED)
def test_the_graph_equals_the_layer_at_any_length(name):
    layer = make(name)
    state = layer.init_state(3)
    y, _ = layer(items(layer, 1, 0))
    outputs = tuple(y) if isinstance(y, dict) else ("y",)
    session = open_session(layer, outputs)
    for length in LENGTHS:
        x = items(layer, 3, length * layer.hop, seed=length)
        with torch.no_grad():
            y, following = layer(x, state)
        wanted = [*(y.values() if isinstance(y, dict) else [y]), *following.values()]
        found = session.run(None, {"x": x.numpy(), **{key: value.numpy() for key, value in state.items()}})
        for a, b in zip(found, wanted, strict=True):
            assert tolerance.within(a, b.numpy())
        state = following


@pytest.mark.parametrize("name", ["conv", "conv dilation", "conv groups", "conv depthwise"])
def test_no_weight_is_reshaped_at_run_time(name):
    graph = trace(make(name), "x", ("y",), None).graph
    weights = {value.name for value in graph.initializer}
    assert not [n for n in graph.node if n.op_type in ("Reshape", "Transpose") and n.input[0] in weights]
    assert name == "conv groups" or "weight.T" in weights


@pytest.mark.parametrize("name", ["log mel", "log mel no overlap"])
def test_fourier_matrix_is_made_when_the_file_is_opened(name, tmp_path):
    model = trace(make(name), "x", ("y",), None)
    assert model.ByteSize() < 10_000
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that an optimised graph suits this machine only
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert not kinds & {"Sin", "Mod"}
