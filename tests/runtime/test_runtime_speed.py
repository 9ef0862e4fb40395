"""What a push costs beyond the backend's own run."""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnx
from toy_models import Toy, manifest, state

import streamssm
from streamssm.manifest import Input, Output

LIMIT = 10e-6


def gru_toy(inputs: int = 8, hidden: int = 32) -> Toy:
    """A GRU: a real model, yet so small that the overhead shows."""
    graph = f"""gru (float[B, T, {inputs}] x, float[B, {hidden}] h)
      => (float[B, T, {hidden}] y, float[B, {hidden}] next_h) {{
      steps = Transpose <perm = [1, 0, 2]> (x)
      zero = Constant <value = int64[1] {{0}}> ()
      one = Constant <value = int64[1] {{1}}> ()
      first = Unsqueeze (h, zero)
      all, last = GRU <hidden_size = {hidden}> (steps, w, r, , , first)
      items = Squeeze (all, one)
      y = Transpose <perm = [1, 0, 2]> (items)
      next_h = Squeeze (last, zero)
    }}"""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + graph)
    rng = np.random.default_rng(0)
    for name, columns in (("w", inputs), ("r", hidden)):
        weight = (rng.standard_normal((1, 3 * hidden, columns)) / columns**0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    outputs = [Output("y", "features", (hidden,))]
    spec = Input("x", "features", "float32", (inputs,))
    toy = Toy(graph, manifest("gru", spec, outputs, [state("h", hidden)]), lambda x: {})
    toy.proto = lambda: model
    return toy


def overhead(model: streamssm.Model, block: int, rounds: int = 400) -> float:
    """Median of a push less median of a bare run of the same binding, interleaved, in seconds."""
    stream = model.stream(block)
    x = np.random.default_rng(0).standard_normal((block, *model.manifest.input.shape)).astype(np.float32)
    stream.push(x)
    session, binding = model.backend._session, stream._lane._bindings[0]
    bare, pushed, clock = [], [], time.perf_counter
    for _ in range(rounds):
        start = clock()
        session.run_with_iobinding(binding)
        middle = clock()
        stream.push(x)
        end = clock()
        bare.append(middle - start)
        pushed.append(end - middle)
    return statistics.median(pushed) - statistics.median(bare)


def test_a_push_of_one_block_costs_little_more_than_the_run(tmp_path):
    model = streamssm.load(gru_toy().write(tmp_path))
    for block in (1, 16):
        # the best of several: another process on the machine only ever adds
        cost = min(overhead(model, block) for _ in range(5))
        assert cost < LIMIT, f"{cost * 1e6:.1f} us at block {block}"
