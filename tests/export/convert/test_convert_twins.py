"""Modules of other packages: recognised by name, stood for by twins, compared with their own code."""

from __future__ import annotations

from typing import Any

import families
import families_b
import numpy as np
import pytest
import stand_ins
import torch
import typeseg
from nets import ITEMS, net
from test_convert import TOLERANCE, items, pushed
from torch import Tensor, nn

from streamssm.errors import UsageError
from streamssm.export import convert, verify_contract
from streamssm.export.convert import ConversionError, register, registry
from streamssm.export.layers import CausalConv1d, LogMel, Mamba, SlidingWindowAttention
from streamssm.export.layers.base import State, StateSpec, StreamingLayer

WIDE = {"item_shape": (8,)}
ALL_CASES = families.CASES | families_b.CASES


@torch.no_grad()
def assert_stream(layer: Any, model: nn.Module, count: int = 23, tolerance: float = TOLERANCE) -> None:
    """In pieces, against the module's own forward."""
    x = items(layer, count)
    found = pushed(layer, x, [1, 6, 0, count - 7])["output"]
    wanted = model(x)
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


# --- mamba_ssm ----------------------------------------------------------------------------


def test_mamba_ssm_mamba_shares_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), stand_ins.Mamba(8, d_state=5, bias=True))
    layer = convert(model, **WIDE)
    assert list(layer.state_spec()) == ["1.conv", "1.ssm"]
    assert layer.twins[0].A_log is model[1].A_log
    assert layer.twins[0].conv1d.weight is model[1].conv1d.weight
    assert_stream(layer, model)
    verify_contract(layer, splits=1)


class Language(nn.Module):
    """A model of fused blocks, no part of which runs without a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 8)
        mixers = (stand_ins.Mamba(8, 4), stand_ins.Mamba2(8, ngroups=2))
        self.layers = nn.ModuleList(stand_ins.Block(mixer, 8) for mixer in mixers)
        self.norm_f, self.head = stand_ins.RMSNorm(8), nn.Linear(8, 17, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, residual = self.embedding(tokens), None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return self.head(self.norm_f(x + residual))


def test_mamba_ssm_without_a_gpu_says_what_was_not_compared() -> None:
    torch.manual_seed(0)
    layer = convert(Language(), vocabulary=17)
    assert layer.vocabulary == 17
    assert list(layer.state_spec()) == [
        f"layers.{i}.mixer.{name}" for i in range(2) for name in ("conv", "ssm")
    ]
    said = "\n".join(layer.note)
    assert "layers.1.mixer: RuntimeError: causal_conv1d_cuda is not available" in said
    assert "layers.0.mixer" not in said  # this one's own code runs


def test_a_bidirectional_mamba_is_refused() -> None:
    class Mamba(stand_ins.Mamba):  # as in forks of mamba_ssm, under the same name
        def __init__(self) -> None:
            super().__init__(8)
            self.A_b_log = nn.Parameter(self.A_log.detach().clone())

    Mamba.__module__, Mamba.__qualname__ = stand_ins.Mamba.__module__, "Mamba"
    with pytest.raises(ConversionError, match="scans backwards too") as caught:
        convert(nn.Sequential(nn.Linear(8, 8), Mamba()), **WIDE)
    assert caught.value.refusals[0].path == "1"


def test_a_twin_that_gives_other_values_is_refused() -> None:
    class Mamba(stand_ins.Mamba):
        def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
            return 1.01 * super().forward(hidden_states)

    Mamba.__module__, Mamba.__qualname__ = stand_ins.Mamba.__module__, "Mamba"
    with pytest.raises(ConversionError, match=r"other values than its twin \(off by 0.00?99"):
        convert(Mamba(8), **WIDE)


def test_a_subclass_with_a_forward_of_its_own_is_user_code() -> None:
    class Reversed(stand_ins.Mamba):
        def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
            return super().forward(hidden_states).flip(1)

    with pytest.raises(ConversionError, match="single items"):  # the loop in it is read, not replaced
        convert(nn.Sequential(nn.Linear(8, 8), Reversed(8)), **WIDE)


# --- mambapy, transformers ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"inner_layernorms": True, "pscan": False}])
def test_mambapy(options: dict) -> None:
    mambapy = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    model = mambapy.Mamba(mambapy.MambaConfig(d_model=8, n_layers=2, d_state=4, **options))
    assert_stream(convert(model, **WIDE), model)


@pytest.mark.parametrize("family", ALL_CASES)
def test_whole_models_of_transformers(family: str) -> None:
    """The mixers and the attention of every family, inside their own models, which stay user code."""
    case = ALL_CASES[family][0]
    config = getattr(families.transformers, f"{case.prefix}Config")(**case.config)
    config._experts_implementation = "eager"
    config._attn_implementation = "sdpa" if case.window else None
    model = getattr(families.transformers, f"{case.prefix}ForCausalLM")(config).float().eval()
    original = case.model()
    model.load_state_dict(original.state_dict())
    options = {"vocabulary": case.config["vocab_size"], "kwargs": {"use_cache": False}, "outputs": ["logits"]}
    layer = convert(model, **options, window=case.window)
    assert layer.window_imposed == case.window
    tokens = case.tokens(150)
    wanted = families.reference(original, tokens, case.window)
    found = pushed(layer, tokens, [1, 60, 0, 89])["output"]
    assert families.relative_error(found, wanted) <= families.TOLERANCE


# --- our own, and the user's --------------------------------------------------------------


def test_our_own_layers_inside_a_users_model() -> None:
    torch.manual_seed(0)
    model = net(
        lambda s, x: s.a(s.m(x)[0] + s.c(x)[0].relu())[0],
        m=lambda: Mamba(8, d_state=3),
        c=lambda: CausalConv1d(8, 8, 5),
        a=lambda: SlidingWindowAttention(8, 2, 6),
    )()
    layer = convert(model, **WIDE)
    assert_stream(layer, model)
    assert list(layer.state_spec())[:3] == ["m.conv", "m.ssm", "c.items"]


def test_a_front_end_of_ours_sets_the_hop() -> None:
    torch.manual_seed(0)
    model = net(
        lambda s, x: s.g(s.l(x)[0])[0],
        l=lambda: LogMel(1000, 25, 10, 5, n_fft=32),
        g=lambda: nn.GRU(5, 3, batch_first=True),
    )()
    assert convert(model, item_shape=()).hop == 10


class Leaky(nn.Module):
    """A recurrence in a loop, which only its author can tell the twin of."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


class LeakyTwin(StreamingLayer):
    def __init__(self, module: Leaky):
        super().__init__()
        self.decay, self.item_shape = module.decay, (3,)

    def state_spec(self) -> dict[str, StateSpec]:
        return {"h": StateSpec((3,))}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, ys = self.start(x, state)["h"], [x[:, :0]]
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            ys.append(h[:, None])
        return torch.cat(ys, 1), {"h": h}


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


@pytest.mark.usefixtures("entries")
def test_a_user_registers_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Leaky())
    with pytest.raises(ConversionError, match="single items"):
        convert(model, **ITEMS)
    register(f"{Leaky.__module__}.Leaky", LeakyTwin)
    layer = convert(model, **ITEMS)
    assert list(layer.state_spec()) == ["1.h"]
    assert_stream(layer, model)


@pytest.mark.usefixtures("entries")
def test_a_twin_after_a_look_ahead_has_to_sit_it_out() -> None:
    register(f"{Leaky.__module__}.Leaky", LeakyTwin)
    model = net(lambda s, x: s.l(s.c(x.mT).mT), c=lambda: nn.Conv1d(3, 3, 5, padding=2), l=Leaky)()
    with pytest.raises(ConversionError, match="look-ahead of 2 items, which it cannot sit out"):
        convert(model, **ITEMS, lookahead=2)


@pytest.mark.parametrize(("name", "twin"), [("nodot", LeakyTwin), ("a.b", 3)])
def test_registering_nonsense_is_refused(name: str, twin: Any) -> None:
    with pytest.raises(UsageError, match="give the class's module and qualified name"):
        register(name, twin)


# --- typeseg ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(request: pytest.FixtureRequest) -> Any:
    return typeseg.unpacked(request.config.cache.mkdir("typeseg"))


def test_the_scan_equals_that_of_typeseg(wheel: Any) -> None:
    """Trained weights, text as input, its own numpy code as the reference."""
    weights = typeseg.its_weights(wheel)
    tokens = torch.tensor(list(wheel.joinpath("_cli.py").read_bytes()[:300]))
    wanted = torch.from_numpy(typeseg.its_kernel(wheel).mamba_forward(np, weights, tokens.numpy()))
    with torch.no_grad():
        found = typeseg.Typeseg(weights).eval()(tokens[None])[0]
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_typeseg_is_refused_because_it_reads_backwards(wheel: Any) -> None:
    model = typeseg.Typeseg(typeseg.its_weights(wheel))
    with pytest.raises(
        ConversionError, match="reverses time: its first output needs the last input"
    ) as caught:
        convert(model, vocabulary=257)
    assert [r.path for r in caught.value.refusals] == [f"blocks.{i}" for i in range(6)]
    assert {(r.kind, r.function) for r in caught.value.refusals} == {("BidirectionalBlock", "flip")}
    assert "keep the forward direction only" in str(caught.value)
