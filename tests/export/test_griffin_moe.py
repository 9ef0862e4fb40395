"""RG-LRU and the mixture of experts against their definitions, item by item in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from grid import EXPERTS, GRIFFIN, items, make

from streamssm import tolerance
from streamssm.errors import LayerError
from streamssm.export import layers as L
from streamssm.export import verify_contract
from streamssm.export.graph import trace


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def weights(layer):
    return {name: value.double().numpy() for name, value in layer.double().state_dict().items()}


@pytest.mark.parametrize("name", [name for name in GRIFFIN if name.startswith("rg-lru")])
def test_rg_lru_equals_its_definition(name):
    w = weights(make(name))
    H, size, _ = w["input_gate_weight"].shape

    def gate(x, which):
        blocks = x.reshape(len(x), H, size)
        y = np.einsum("bhi,hij->bhj", blocks, w[f"{which}_weight"]) + w[f"{which}_bias"]
        return sigmoid(y.reshape(len(x), -1))

    def definition(x):
        h, out = np.zeros((len(x), H * size)), []
        for t in range(x.shape[1]):
            log_a = -8 * gate(x[:, t], "recurrent_gate") * np.log1p(np.exp(w["recurrent_param"]))
            m = np.sqrt(-np.expm1(2 * log_a)) if t else 1.0
            h = np.exp(log_a) * h + m * gate(x[:, t], "input_gate") * x[:, t]
            out.append(h)
        state = {"lru": h[:, None], "position": np.full(len(x), x.shape[1])}
        return np.stack(out, 1), state

    verify_contract(make(name), reference=definition)


def test_rg_lru_survives_closed_and_open_gates():
    layer = make("rg-lru")
    with torch.no_grad():
        layer.recurrent_gate_bias.copy_(torch.tensor([[-200.0, -90.0], [90.0, 200.0], [-20.0, 0.0]]))
    x = items(layer, 2, 50)
    y, state = layer(x)
    y.sum().backward()
    double = make("rg-lru").double()
    double.load_state_dict(layer.state_dict())
    exact = {key: v.double() if v.is_floating_point() else v for key, v in layer.init_state(2).items()}
    wanted, _ = double(x.double(), exact)
    assert tolerance.within(y.detach().numpy(), wanted.detach().numpy())
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert state["lru"].isfinite().all()


@pytest.mark.parametrize("name", EXPERTS)
def test_moe_equals_its_definition(name):
    layer = make(name)
    w, k = weights(make(name)), layer.top_k

    def silu_or_gelu(x):
        return layer.function(torch.from_numpy(x)).numpy()

    def one(item):
        logits = w["router.weight"] @ item
        best = np.argsort(-logits)[:k]
        scores = np.exp(logits - logits.max())
        scores /= scores[best].sum() if layer.renormalise else scores.sum()
        y = np.zeros_like(item)
        for e in best:
            u, gate = np.split(w[f"experts.{e}.fc1.weight"] @ item, 2)
            y += scores[e] * (w[f"experts.{e}.fc2.weight"] @ (u * silu_or_gelu(gate)))
        return y

    def definition(x):
        return np.stack([[one(item) for item in row] for row in x]), {}

    verify_contract(make(name), reference=definition)


@pytest.fixture(params=["moe", "moe renormalised"])
def session(request):
    layer = make(request.param)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = trace(layer, "x", ("y",), None)
    return layer, model, onnxruntime.InferenceSession(model.SerializeToString(), options)


def test_the_graph_of_a_mixture_equals_the_layer_at_any_length(session):
    layer, _, opened = session
    for B, T in [(2, 0), (1, 1), (3, 1), (2, 17), (1, 0)]:
        x = items(layer, B, T)
        found = opened.run(None, {"x": x.numpy()})[0]
        assert tolerance.within(found, layer(x)[0].detach().numpy())


@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 9), (1, 0)])
def test_an_expert_multiplies_only_the_rows_that_chose_it(session, B, T):
    """What goes into each product, read from the graph as it runs."""
    layer, model, _ = session
    by_weight = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith("experts."):
            by_weight[node.input[1]] = node.input[0]
    assert len(by_weight) == 2 * len(layer.experts)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in by_weight.values())
    opened = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    x = items(layer, B, T)
    rows = opened.run(list(by_weight.values()), {"x": x.numpy()})
    chosen = layer.router(x).topk(layer.top_k).indices.flatten()
    for weight, seen in zip(by_weight, rows, strict=True):
        expert = int(weight.split(".")[1])
        assert len(seen) == int((chosen == expert).sum()), weight


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (lambda: L.MixtureOfExperts(6, 5, 2, 3), "top_k = 3 is more"),
        (lambda: L.MixtureOfExperts(6, 5, 0, 1), "experts = 0"),
        (lambda: L.MixtureOfExperts(6, 5, 2, 1, activation="x"), "activation 'x'"),
        (lambda: L.RGLRU(6, 4), "blocks = 4 does not divide 6"),
        (lambda: L.RecurrentBlock(6, 0), "width = 0"),
        (lambda: L.SoftCap(0.0), "cap = 0.0"),
    ],
)
def test_bad_arguments(make_layer, message):
    with pytest.raises(LayerError, match=message):
        make_layer()
