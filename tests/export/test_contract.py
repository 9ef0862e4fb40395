"""``verify_contract`` finds each kind of broken layer, and masks and lengths keep rows apart."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from grid import items, make
from torch import nn

from streamssm.errors import GateError
from streamssm.export import layers as L
from streamssm.export import verify_contract


class Leaky(L.StreamingLayer):
    """A correct leaky sum; each subclass breaks one sentence of the contract."""

    item_shape = (3,)

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.9, 0.8, 0.7]))

    def state_spec(self):
        return {"sum": L.StateSpec((3,))}

    def forward(self, x, state=None):
        total = self.start(x, state)["sum"]
        y = [total[:, None][:, :0].to(x.dtype)]
        for t in range(x.shape[1]):
            total = self.advance(total, x[:, t])
            y.append(total[:, None].to(x.dtype))
        return self.finish(x, torch.cat(y, 1), total)

    def advance(self, total, item):
        return total * self.gain.to(total.dtype) + item.to(total.dtype)

    def finish(self, x, y, total):
        return y, {"sum": total}


class ForgetsState(Leaky):
    def finish(self, x, y, total):
        return y, {"sum": torch.zeros_like(total)}


class KeepsStateInside(Leaky):
    def forward(self, x, state=None):
        self.calls = getattr(self, "calls", 0) + 1
        y, state = super().forward(x, state)
        return y + 0.1 * self.calls, state


class WritesIntoItsState(Leaky):
    def advance(self, total, item):
        return total.mul_(self.gain.to(total.dtype)).add_(item.to(total.dtype))


class MixesRows(Leaky):
    def advance(self, total, item):
        return super().advance(total, item - item.mean(0))


class SeesTheFuture(Leaky):
    def finish(self, x, y, total):
        return y + x.sum(1, keepdim=True), {"sum": total}


class StateInWeightDtype(Leaky):
    def advance(self, total, item):
        return super().advance(total.to(item.dtype), item)


class RoundsToHalf(Leaky):
    def advance(self, total, item):
        return super().advance(total, item).half().to(total.dtype)


class WrongDtypeOut(Leaky):
    def finish(self, x, y, total):
        return y.to(total.dtype), {"sum": total}


class StartsElsewhere(Leaky):
    def init_state(self, batch, device=None):
        return {"sum": torch.ones(batch, 3, device=device)}


class LosesItems(Leaky):
    def finish(self, x, y, total):
        return y[:, 1:], {"sum": total}


class WrongRatio(Leaky):
    output_ratio = Fraction(1, 2)


class ExtraState(Leaky):
    def finish(self, x, y, total):
        return y, {"sum": total, "other": total}


class FailsOnNothing(Leaky):
    def forward(self, x, state=None):
        if x.shape[1] == 0:
            raise RuntimeError("no items")
        return super().forward(x, state)


class UnusedParameter(Leaky):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(1))


class EndlessGradient(Leaky):
    def advance(self, total, item):
        return super().advance(total, item) + (self.gain.to(total.dtype) * 0).sqrt()


BROKEN = {
    ForgetsState: "split|masks|NaN|changed",
    KeepsStateInside: "reset equals fresh",
    WritesIntoItsState: "purity|state",
    MixesRows: "row 0 alone",
    SeesTheFuture: "changed",
    StateInWeightDtype: "state of the torch.float16 layer",
    WrongDtypeOut: "dtypes",
    StartsElsewhere: "does not start at zero",
    LosesItems: "output count",
    WrongRatio: "output count",
    ExtraState: "other",
    FailsOnNothing: "no items",
    UnusedParameter: "none reaches 'spare'",
    EndlessGradient: "not finite",
}


def test_a_correct_layer_passes_unchanged():
    layer = Leaky().train()
    verify_contract(layer)
    assert layer.training
    assert layer.gain.grad is None


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_layer_is_found(broken):
    with pytest.raises(GateError, match=BROKEN[broken]) as caught:
        verify_contract(broken())
    assert broken.__name__ in str(caught.value)


def test_a_wrong_definition_is_found():
    with pytest.raises(GateError, match=r"reference.*float64 allows"):
        verify_contract(Leaky(), reference=lambda x: x)
    with pytest.raises(GateError, match="reference"):
        verify_contract(RoundsToHalf(), reference=lambda x: Leaky().double()(torch.from_numpy(x))[0].detach())


def test_given_input_and_splits():
    verify_contract(Leaky(), x=torch.ones(2, 10, 3), splits=[[4, 0, 6], [10]])
    with pytest.raises(GateError, match="give x"):
        verify_contract(L.Activation("relu"))
    with pytest.raises(GateError, match="2 rows"):
        verify_contract(Leaky(), x=torch.ones(1, 10, 3))
    with pytest.raises(GateError, match="2 hops"):
        verify_contract(Leaky(), items=1)
    verify_contract(Leaky(), items=2, batch=2)


@pytest.mark.parametrize("name", ["audio model", "heads", "token model"])
def test_ragged_rows_equal_rows_alone(name):
    layer = make(name)
    lengths = [5 * layer.hop, 0, 2 * layer.hop]
    x = items(layer, 3, 6 * layer.hop)
    y, state = L.forward_ragged(layer, x, torch.tensor(lengths))
    outputs = y if isinstance(y, dict) else {"y": y}
    for row, length in enumerate(lengths):
        alone, final = layer(x[row : row + 1, :length])
        for key, wanted in (alone if isinstance(alone, dict) else {"y": alone}).items():
            torch.testing.assert_close(outputs[key][row : row + 1, : wanted.shape[1]], wanted)
            assert not outputs[key][row, wanted.shape[1] :].any()
        for key, value in final.items():
            torch.testing.assert_close(state[key][row : row + 1], value)
