"""Containers keep the contract and add up rates, look-ahead and state names."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from grid import CONTAINERS, audio_model, items, make
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm import tolerance
from streamssm.errors import LayerError
from streamssm.export import layers as L
from streamssm.export import verify_contract


@pytest.mark.parametrize("name", CONTAINERS)
def test_contract(name):
    layer = make(name)
    verify_contract(layer, items=12 * layer.hop)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(CONTAINERS)), lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_any_split_equals_the_whole(name, lengths):
    layer = make(name)
    verify_contract_split(
        layer, items(layer, 2, sum(lengths) * layer.hop, 1), [n * layer.hop for n in lengths]
    )


def verify_contract_split(layer, x, lengths):
    as_dict = lambda y: y if isinstance(y, dict) else {"y": y}  # noqa: E731
    whole, final = layer(x)
    state, pieces = layer.init_state(len(x)), []
    for chunk in x.split(lengths, dim=1):
        y, state = layer(chunk, state)
        pieces.append(as_dict(y))
    for name, wanted in as_dict(whole).items():
        found = torch.cat([y[name] for y in pieces], 1)
        assert tolerance.within(found.detach().numpy(), wanted.detach().numpy())
    for name, value in final.items():
        assert tolerance.within(state[name].detach().numpy(), value.detach().numpy())


def test_rates_and_lookahead_add_up():
    model = audio_model()
    assert model.output_ratio == Fraction(1, 20)
    assert model.hop == 20
    assert model.lookahead == 20  # two frames of ten samples
    assert model.output_kind == "probability"
    assert model.item_shape == ()
    strides = make("sequential strides")
    assert (strides.hop, strides.lookahead) == (6, 3 * 2)


def test_state_names():
    names = list(audio_model().state_spec())
    assert names[1:5] == ["normalise.mean", "normalise.var", "normalise.position", "stem.items"]
    assert names[5:7] == ["backbone.layers.0.mixer.conv", "backbone.layers.0.mixer.ssm"]
    assert list(L.Sequential(L.Delay(1, (3,)), L.GRU(3, 2)).state_spec()) == ["0.items", "1.h0"]


def test_a_layer_used_twice_has_two_states():
    gru = L.GRU(4, 4)
    model = L.Sequential(gru, gru)
    assert list(model.state_spec()) == ["0.h0", "1.h0"]
    verify_contract(model)


class Repeat(L.StreamingLayer):
    """Each item twice: the only layer here with a ratio above one."""

    item_shape = (3,)
    output_ratio = Fraction(2)

    def forward(self, x, state=None):
        return x.repeat_interleave(2, dim=1), self.start(x, state)


def test_hop_counts_what_every_child_needs():
    up_and_down = L.Sequential(Repeat(), L.CausalConv1d(3, 3, 3, stride=2))
    assert (up_and_down.output_ratio, up_and_down.hop) == (1, 1)
    down_and_up = L.Sequential(L.CausalConv1d(3, 3, 3, stride=2), Repeat())
    assert (down_and_up.output_ratio, down_and_up.hop) == (1, 2)
    for model in (up_and_down, down_and_up, L.Residual(down_and_up)):
        verify_contract(model)


def test_residual_delays_the_skip():
    conv = L.CausalConv1d(3, 3, 5, lookahead=2)
    torch.nn.init.zeros_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    x = items(conv, 1, 9)
    y, _ = L.Residual(conv)(x)
    assert torch.equal(y[:, 2:], x[:, :-2])
    assert not y[:, :2].any()


def test_hybrid_names_match_checkpoints():
    stack = L.HybridStack(["mamba", "mamba"], 6, mlp={})
    names = set(stack.state_dict())
    assert {
        "layers.0.norm.weight",
        "layers.1.mixer.A_log",
        "norm_f.weight",
        "layers.1.mlp.fc1.weight",
    } <= names
    assert "layers.0.norm2.weight" in names


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: L.Sequential(), "at least one"),
        (lambda: L.Sequential(torch.nn.Linear(2, 2)), "not a StreamingLayer"),
        (
            lambda: L.Sequential(L.Linear(3, 4), L.Linear(5, 4)),
            r"takes items of shape \(5,\), but receives \(4,\)",
        ),
        (lambda: L.Sequential(Repeat(), L.Delay(1, (3,))), "add up to 1/2 input items"),
        (lambda: L.Sequential({"class": L.Delay(1)}), "no Python keyword"),
        (lambda: L.Sequential(L.Heads({"a": L.GRU(3, 3)}), L.GRU(3, 3)), "nothing can follow"),
        (lambda: L.Residual(L.CausalConv1d(3, 3, 3, stride=2)), "a ratio of 1"),
        (lambda: L.Residual(L.Linear(3, 4)), "cannot be added"),
        (lambda: L.Heads({}), "at least one"),
        (lambda: L.Heads({"a": L.Linear(3, 4), "b": L.Linear(2, 4)}), "item_shape of 'b'"),
        (lambda: L.HybridStack([], 4), "must be a list"),
        (lambda: L.HybridStack("mamba", 4), "must be a list"),
        (lambda: L.HybridStack(["rwkv"], 4), "'rwkv' is unknown"),
        (lambda: L.HybridStack(["gru"], 4, norm="batch"), "'batch' is unknown"),
    ],
)
def test_impossible_containers_are_refused(build, message):
    with pytest.raises(LayerError, match=message):
        build()
