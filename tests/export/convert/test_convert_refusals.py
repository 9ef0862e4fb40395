"""What cannot stream is refused, with its module, the reason and a remedy; never converted wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import CHANNELS_FIRST, ITEMS, REFUSED, Net, conv, net
from torch import Tensor, nn

from streamssm.errors import ExportError
from streamssm.export import convert
from streamssm.export.convert import ConversionError, proof
from streamssm.export.convert.plan import Step


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_place_reason_and_remedy(name: str) -> None:
    case = REFUSED[name]
    with pytest.raises(ConversionError) as caught:
        convert(case.model(), **case.options)
    refusal = next((r for r in caught.value.refusals if case.function in r.function), None)
    assert refusal is not None, str(caught.value)
    assert refusal.path == case.path
    assert case.why in refusal.why
    assert case.remedy in refusal.remedy
    assert isinstance(caught.value, ExportError)


def test_every_reason_is_told_with_its_line() -> None:
    model = net(lambda s, x: s.n(s.c(x.flip(-1))).cumsum(-1), c=conv(3, 4, 1), n=lambda: nn.GroupNorm(2, 4))()
    with pytest.raises(ConversionError) as caught:
        convert(model, **CHANNELS_FIRST)
    assert {r.function for r in caught.value.refusals} == {"flip", "group_norm", "cumsum"}
    assert all(r.line.startswith("test_convert_refusals.py:") for r in caught.value.refusals)


def test_the_same_place_in_every_layer_is_told_once() -> None:
    block = net(lambda s, x: x + x.mean(1, keepdim=True))
    with pytest.raises(ConversionError) as caught:
        convert(nn.Sequential(*(block() for _ in range(6))), **ITEMS)
    assert len(caught.value.refusals) == 6
    assert str(caught.value).count("remedy") == 1
    assert "and 3 more like it" in str(caught.value)


def test_a_look_ahead_has_to_be_allowed() -> None:
    model = net(lambda s, x: s.b(s.a(x)), a=conv(3, 3, 5, padding=2), b=conv(3, 3, 4, padding="same"))()
    with pytest.raises(
        ConversionError, match=r"need 4 input items .* \(a, conv1d by 2; b, conv1d by 2\)"
    ) as caught:
        convert(model, **CHANNELS_FIRST, lookahead=3)
    assert "pass lookahead=4" in str(caught.value)
    assert convert(model, **CHANNELS_FIRST, lookahead=9).lookahead == 4


def test_memory_between_calls_is_noticed() -> None:
    with pytest.raises(ConversionError):
        convert(REFUSED["memory"].model(), **ITEMS)

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.last
            self.last = self.last + 1
            return y

    with pytest.raises(ConversionError, match=r"two runs on one input differ|draws random numbers"):
        convert(Cached(), **ITEMS)


def longer_than_a_hundred(net: Net, x: Tensor) -> Tensor:
    return x.relu() if x.shape[1] > 100 else x.sigmoid()


def test_branches_on_the_length_are_noticed() -> None:
    with pytest.raises(ConversionError, match="depending on the length"):
        convert(net(longer_than_a_hundred)(), **ITEMS)
    layer = convert(net(lambda s, x: x.relu() if x.shape[1] > 4096 else x.sigmoid())(), **ITEMS)
    with pytest.raises(ValueError, match="took another way"):
        layer(torch.zeros(1, 5000, 3))


def test_code_that_torch_does_not_see_is_noticed() -> None:
    def through_numpy(net: Net, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().copy())

    with pytest.raises(ConversionError, match="numpy"):
        convert(net(through_numpy)(), **ITEMS)
    with pytest.raises(ConversionError, match="does not depend on the input"):
        convert(net(lambda s, x: torch.ones(x.shape[0], x.shape[1], 1))(), **ITEMS)


def test_a_module_of_code_that_mixes_and_unmixes_is_taken_as_a_whole() -> None:
    class Sorted(nn.Module):
        """Looks at items one by one in a way that no rule knows, and works item by item."""

        def forward(self, x: Tensor) -> Tensor:
            order = x[..., 0].argsort(1)
            back = order.argsort(1)
            y = torch.gather(x, 1, order[..., None].expand_as(x)).tanh()
            return torch.gather(y, 1, back[..., None].expand_as(x))

    layer = convert(nn.Sequential(nn.Linear(3, 3), Sorted()), **ITEMS)
    assert not layer.state_spec()


def test_the_proof_finds_a_plan_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: a step that forgets its history. The proof names the call."""
    right = Step.fitted

    def forgetful(self: Step, session: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.path == "b":
            session.state = {name: torch.zeros_like(value) for name, value in session.state.items()}
        return right(self, session, args, kwargs)

    model = net(lambda s, x: s.b(nn.functional.pad(s.a(x), (2, 0))), a=conv(3, 3, 1), b=conv(3, 3, 3))()
    monkeypatch.setattr(Step, "fitted", forgetful)
    with pytest.raises(ConversionError, match="the stream differs from the model"):
        convert(model, **CHANNELS_FIRST)


def test_the_proof_names_the_first_call_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamssm.export.convert.rules.windows import WindowStep

    right = WindowStep.run

    def wrong(self: Step, session: Any, func: Any, args: tuple, kwargs: dict) -> Tensor:
        return right(self, session, func, args, kwargs) + (0.1 if self.path == "b" else 0.0)

    pad = nn.functional.pad
    model = net(
        lambda s, x: s.c(pad(s.b(pad(s.a(pad(x, (1, 0))), (1, 0))), (1, 0))),
        a=conv(3, 3, 2),
        b=conv(3, 3, 2),
        c=conv(3, 3, 2),
    )()
    monkeypatch.setattr(WindowStep, "run", wrong)
    with pytest.raises(ConversionError) as caught:
        convert(model, **CHANNELS_FIRST)
    assert caught.value.refusals[0].path == "b"
    assert proof.BOUNDS[torch.float64] <= 2e-5
