"""Mixers and blocks of the hybrid families against their definitions; what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid import MULTI_HEAD, SIGMOID_EXPERTS, items, make

from streamssm import tolerance
from streamssm.errors import LayerError
from streamssm.export import layers as L
from streamssm.export import verify_contract
from streamssm.export.graph import trace
from streamssm.kernels import reference


def weights(layer):
    return {name: value.double().numpy() for name, value in layer.double().state_dict().items()}


def close(found, wanted):
    return tolerance.within(found.detach().numpy(), wanted.detach().numpy())


# --- Mamba with several heads -------------------------------------------------------------


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multi_head_mamba_equals_its_definition(name):
    layer, w = make(name), weights(make(name))
    P, N = layer.channels, layer.d_state

    def definition(x):
        state = {key: np.zeros((len(x), *spec.shape)) for key, spec in layer.state_spec().items()}
        u, z = np.split(x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0.0), 2, axis=-1)
        taps, bias = w["conv1d.weight"][:, 0].T, w.get("conv1d.bias", np.zeros(u.shape[-1]))
        past = np.zeros((len(x), len(taps) - 1, u.shape[-1]))
        u, past = reference.causal_conv1d(u, taps, bias, past, silu=True)
        parts = []
        for h in range(len(layer.heads)):
            own = slice(h * P, (h + 1) * P)
            dt, B, C = np.split(u[..., own] @ w[f"heads.{h}.x_proj.weight"].T, [-2 * N, -N], axis=-1)
            y, state[f"ssm.{h}"] = reference.selective_scan(
                u[..., own],
                dt @ w[f"heads.{h}.dt_proj.weight"].T,
                -np.exp(w[f"heads.{h}.A_log"]).T,
                B,
                C,
                w[f"heads.{h}.D"],
                w[f"heads.{h}.dt_proj.bias"],
                z[..., own],
                state[f"ssm.{h}"],
            )
            parts.append(y)
        state |= {"conv": past} if "conv" in state else {}
        y = np.concatenate(parts, -1) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)
        return y, state

    verify_contract(make(name), reference=definition)


def test_one_head_is_mamba():
    one, mamba = L.MultiHeadMamba(6, 1, d_state=5), L.Mamba(6, d_state=5)
    renamed = {name.replace("heads.0.", ""): value for name, value in one.state_dict().items()}
    mamba.load_state_dict(renamed)
    x = items(mamba, 2, 30)
    assert close(one(x)[0], mamba(x)[0])


def test_heads_must_divide_the_channels():
    with pytest.raises(LayerError, match="num_heads = 5 does not divide 12"):
        L.MultiHeadMamba(6, 5)


# --- adapters -----------------------------------------------------------------------------


def test_an_adapter_is_a_low_rank_change_of_the_matrix():
    layer = L.SlidingWindowAttention(6, 3, 5)
    twin = L.adapted(layer, ("q_proj", "v_proj"), 2)
    merged = L.SlidingWindowAttention(6, 3, 5)
    merged.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for name in ("q_proj", "v_proj"):
            product = getattr(twin, name)
            getattr(merged, name).weight += product.up.weight @ product.down.weight
    x = items(layer, 2, 30)
    assert close(twin(x)[0], merged(x)[0])
    assert not close(twin(x)[0], layer(x)[0])


def test_twins_share_what_is_not_adapted():
    layer = L.GatedMLP(5, 9)
    first, second = (L.adapted(layer, ("fc1",), 2) for _ in range(2))
    assert first.fc1.shared is second.fc1.shared is layer.fc1
    assert first.fc2 is second.fc2 is layer.fc2
    assert first.fc1.up is not second.fc1.up
    assert isinstance(layer.fc1, torch.nn.Linear)


# --- side by side, and beside the embedding -----------------------------------------------


def test_parallel_adds():
    layer = L.Parallel({"a": L.Mamba(6, d_state=3), "b": L.SlidingWindowAttention(6, 3, 5)})
    x = items(layer, 2, 20)
    y, state = layer(x)
    (a, a_state), (b, b_state) = (layer.layers[name](x) for name in ("a", "b"))
    assert close(y, a + b)
    assert set(state) == {*(f"a.{name}" for name in a_state), *(f"b.{name}" for name in b_state)}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "at least one layer"),
        ({"a": L.Linear(5, 3), "b": L.Linear(4, 3)}, "'b' has items of shape"),
        ({"a": L.CausalConv1d(3, 3, 4), "b": L.CausalConv1d(3, 3, 4, lookahead=1)}, "a look-ahead of 1"),
        ({"a": L.CausalConv1d(3, 3, 4), "b": L.CausalConv1d(3, 3, 4, stride=2)}, "a ratio of 1/2"),
    ],
)
def test_parallel_refuses_what_cannot_be_added(layers, message):
    with pytest.raises(LayerError, match=message):
        L.Parallel(layers)


def test_concat_stack_shows_its_input_to_its_wide_blocks():
    stack = make("concat stack")
    x = items(stack, 2, 20)
    first, second, third = stack.layers
    h = first(x)[0]
    for block in (second, third):
        side = block.side(torch.cat([h, x], -1))[0]
        h = h + block.mixer(block.norm(h + side)[0])[0]
    assert close(stack(x)[0], stack.norm_f(h)[0])


def test_a_shared_block_has_a_state_for_each_use_and_is_stored_once():
    stack = make("concat stack")
    shared = stack.layers[1].side[0]
    assert stack.layers[2].side[0] is shared
    for depth in (1, 2):
        assert f"layers.{depth}.side.0.1.position" in stack.state_spec()
    model = trace(stack, "x", ("y",), None)
    stored = [v.name for v in model.graph.initializer if tuple(v.dims) in ((12, 12), (6, 12), (12, 6))]
    queries = [name for name in stored if "q_proj" in name]
    assert len(queries) == 1, stored


def test_concat_block_needs_a_side_of_twice_its_width():
    with pytest.raises(LayerError, match="it must map 12 channels to 6"):
        L.ConcatBlock(L.Linear(6, 6), L.RMSNorm(6), L.Mamba(6))


# --- experts scored one by one ------------------------------------------------------------


@pytest.mark.parametrize("name", SIGMOID_EXPERTS)
def test_sigmoid_mixture_equals_its_definition(name):
    layer, w = make(name), weights(make(name))
    E = len(layer.experts)

    def function(x):
        return layer.function(torch.from_numpy(x)).numpy()

    def linear(x, which):
        return x if f"{which}.weight" not in w else w[f"{which}.weight"] @ x + w[f"{which}.bias"]

    def chosen(scores):
        merit = scores + w["choice_bias"]
        groups = merit.reshape(layer.groups, -1)
        best = np.argsort(-np.sort(groups)[:, -2:].sum(1))[: layer.kept_groups]
        outside = ~np.isin(np.arange(E) // groups.shape[1], best)
        return np.argsort(-np.where(outside, -np.inf, merit))[: layer.top_k]

    def one(item):
        scores = 1 / (1 + np.exp(-(w["router.weight"] @ item)))
        best = chosen(scores)
        factor = layer.scale / (scores[best].sum() if layer.normalise else 1)
        inner = linear(item, "into")
        y = np.zeros_like(inner)
        for e in best:
            hidden = w[f"experts.{e}.fc1.weight"] @ inner
            u, gate = np.split(hidden, 2) if layer.gated else (1.0, hidden)
            y += factor * scores[e] * (w[f"experts.{e}.fc2.weight"] @ (u * function(gate)))
        return linear(y, "back")

    def definition(x):
        return np.stack([[one(item) for item in row] for row in x]), {}

    verify_contract(make(name), reference=definition)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 4}, "groups = 4 does not divide 9"),
        ({"groups": 3, "kept_groups": 4}, "4 out of 3 groups"),
        ({"groups": 9, "kept_groups": 4}, "groups of 1 cannot"),
        ({"groups": 3, "kept_groups": 1, "top_k": 4}, "those kept must hold top_k"),
        ({"top_k": 10}, "top_k = 10 is more than there are experts"),
    ],
)
def test_groups_that_cannot_be(options, message):
    with pytest.raises(LayerError, match=message):
        L.SigmoidMixture(**{"d_model": 6, "hidden": 5, "experts": 9, "top_k": 3} | options)


# --- feed forward -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp plain", "mlp relu2", "mlp gelu"])
def test_mlp_equals_its_definition(name):
    layer, w = make(name), weights(make(name))

    def definition(x):
        hidden = x @ w["fc1.weight"].T + w.get("fc1.bias", 0.0)
        if name == "mlp gelu":
            u, g = np.split(hidden, 2, axis=-1)
            hidden = u * 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        elif name == "mlp relu2":
            hidden = np.maximum(hidden, 0) ** 2
        else:
            hidden = torch.nn.functional.gelu(torch.from_numpy(hidden)).numpy()
        return hidden @ w["fc2.weight"].T + w.get("fc2.bias", 0.0), {}

    verify_contract(layer, reference=definition)
