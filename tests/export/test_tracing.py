"""Layers as ONNX, in ONNX Runtime, at lengths that tracing never saw."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from grid import items, make

from streamssm import tolerance
from streamssm.export.graph import trace

# variants that the whole models of test_export do not hold
TRACED = [
    *("delay", "conv stride 3", "conv groups and stride", "conv stride and dilation", "conv depthwise gelu"),
    *("log mel", "mamba K 1", "mamba2 no norm", "swa no positions", "lstm 2 layers"),
    *("residual with look-ahead", "heads"),
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
