"""``convert``: what is recognised, each against the module's own forward; the contract of the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from nets import ACCEPTED, ITEMS, Case, net
from torch import Tensor, nn

from streamssm.errors import ExportError
from streamssm.export import convert, verify_contract
from streamssm.export.convert.flow import to_rows
from streamssm.export.layers import Linear

TOLERANCE = 2e-5


def converted(case: Case) -> Any:
    return convert(case.model(), **case.options)


def items(layer: Any, count: int, batch: int = 2, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, count, *layer.item_shape)
    if layer.vocabulary:
        return torch.randint(layer.vocabulary, shape, generator=generator)
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def pushed(layer: Any, x: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    state, parts = layer.init_state(x.shape[0]), []
    for chunk in x.split(lengths, dim=1):
        y, state = layer(chunk, state)
        parts.append(dict(y) if isinstance(y, Mapping) else {"output": y})
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def leaves(result: Any, prefix: str = "") -> dict[str, Tensor]:
    """A model's own result by the names that convert gives."""
    if isinstance(result, Tensor):
        return {prefix or "output": result}
    pairs = result.items() if isinstance(result, Mapping) else enumerate(result)
    found = {}
    for key, value in pairs:
        if value is not None:
            found |= leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found


@torch.no_grad()
def assert_equal_to_the_model(case: Case, layer: Any, count: int) -> None:
    """Whole, in odd pieces and hop by hop, against a plain call of the user's module."""
    x, hop = items(layer, count * layer.hop), layer.hop
    own = leaves(case.model()(x.movedim(1, case.options.get("time", 1))))
    layouts = {output.name: output.layout for output in layer.plan.outputs}
    wanted = {name: to_rows(value, layouts[name]) for name, value in own.items()}
    if "window" in case.options:  # the module attends to everything; the stream to the window
        wanted = {"output": layer.reference(x)[:, layer.lookahead :]}
    for lengths in ([x.shape[1]], [hop, 0, 3 * hop, x.shape[1] - 4 * hop], [hop] * count):
        found = pushed(layer, x, lengths)
        assert set(found) == set(wanted)
        for name, value in found.items():
            y = value[:, int(layer.lookahead * layer.ratio_of(name)) :]
            assert y.shape[1] > 0
            error = (y - wanted[name][:, : y.shape[1]]).abs().max() / wanted[name].abs().max()
            assert error < TOLERANCE, (name, lengths[:3], float(error))


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_stream_equals_the_model(name: str) -> None:
    case = ACCEPTED[name]
    layer = converted(case)
    assert (layer.hop, layer.lookahead) == (case.hop, case.lookahead)
    if case.states is not None:
        assert tuple(layer.state_spec()) == case.states
    assert_equal_to_the_model(case, layer, 29)


# those of one kind share their steps; half precision lacks kernels for some on this CPU
@pytest.mark.parametrize(
    "name", ["cut the tail", "stride and transposed", "two heads, two rates", "gru with a start", "dual path"]
)
def test_the_result_keeps_the_contract(name: str) -> None:
    verify_contract(converted(ACCEPTED[name]), splits=2)


@pytest.mark.parametrize("name", ["centred", "centred U", "attention after a look-ahead"])
def test_a_look_ahead_keeps_the_contract(name: str) -> None:
    verify_contract(converted(ACCEPTED[name]), splits=2)


def test_the_weights_are_the_users_own() -> None:
    model = ACCEPTED["cut the tail"].model().train()
    layer = convert(model, **ACCEPTED["cut the tail"].options)
    assert layer.model is model
    assert {id(p) for p in layer.parameters()} == {id(p) for p in model.parameters()}
    assert model.training  # left as it was
    assert model.n.training
    before = layer(items(layer, 5))[0]
    with torch.no_grad():
        model.c.weight.mul_(2)
    assert not torch.equal(before, layer(items(layer, 5))[0])


def test_gradients_reach_the_users_weights() -> None:
    case = ACCEPTED["gru with a start"]
    model = case.model()
    layer = convert(model, **case.options)
    layer(items(layer, 5))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_time_axis_is_found() -> None:
    model = ACCEPTED["pad left"].model()
    layer = convert(model, torch.randn(2, 3, 40))
    assert (layer.item_shape, layer.entry.time) == ((3,), 2)
    waves = convert(ACCEPTED["waveform"].model(), torch.randn(2, 300), lookahead=20)
    assert waves.item_shape == ()


def test_an_ambiguous_time_axis_is_asked_for() -> None:
    model = net(lambda s, x: x * 2)()
    with pytest.raises(ExportError, match="axes 1, 2 of the example; say which: time="):
        convert(model, torch.randn(2, 7, 9))
    assert convert(model, torch.randn(2, 7, 9), time=2).item_shape == (7,)


def test_time_first_models() -> None:
    torch.manual_seed(0)
    model = nn.GRU(3, 4)
    layer = convert(model, item_shape=(3,), time=0, batch=1, outputs=["0"])
    x = torch.randn(2, 9, 3)
    with torch.no_grad():
        assert torch.allclose(layer(x)[0], model(x.transpose(0, 1))[0].transpose(0, 1), atol=1e-6)


def test_constants_go_along_with_each_call() -> None:
    model = net(lambda s, x, scale, shift=0.0: x * scale + shift)()
    layer = convert(model, **ITEMS, args=(3.0,), kwargs={"shift": 1.0})
    assert torch.equal(layer(torch.ones(1, 2, 3))[0], torch.full((1, 2, 3), 4.0))


def test_outputs_are_chosen_by_name() -> None:
    model = net(lambda s, x: {"keep": x * 2, "drop": x.mean(1), "nested": (x, None)})()
    layer = convert(model, **ITEMS, outputs=["keep", "nested.0"])
    assert layer.output_names == ("keep", "nested.0")
    with pytest.raises(ExportError, match="there is no 'else'"):
        convert(model, **ITEMS, outputs=["else"])


def test_a_streaming_layer_is_itself() -> None:
    layer = Linear(3, 4)
    assert convert(layer) is layer


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ExportError, match=r"a function, no torch\.nn\.Module"):
        convert(lambda x: x, torch.zeros(2, 5, 3))


def test_a_window_that_is_imposed_is_said() -> None:
    assert converted(ACCEPTED["attention"]).window_imposed == 5
    assert converted(ACCEPTED["attention in a band"]).window_imposed is None
    assert converted(ACCEPTED["gru"]).window_imposed is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give convert an example"),
        ({"example": torch.zeros(3)}, "give one tensor with a batch and a time axis"),
        ({"example": torch.zeros(2, 5, 3, dtype=torch.bool)}, "has dtype torch.bool"),
        ({"example": torch.zeros(2, 5, 3), "time": 0}, "both axis 0"),
        ({"item_shape": (4,)}, r"does not run on an input such as \(2, 96, 4\)"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        convert(ACCEPTED["gru"].model(), **options)
