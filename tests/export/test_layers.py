"""Every layer keeps the contract and equals its float64 definition; errors say what is wrong."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grid import CONV, FRONT, LAYERS, MAMBA, MAMBA2, RECURRENT, SWA, items, make
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm import tolerance
from streamssm.errors import LayerError
from streamssm.export import layers as L
from streamssm.export import verify_contract
from streamssm.kernels import reference


def weights(layer):
    return {name: value.double().numpy() for name, value in layer.double().state_dict().items()}


@pytest.mark.parametrize("name", LAYERS)
def test_contract(name):
    verify_contract(make(name))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(LAYERS)), lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_any_split_equals_the_whole(name, lengths):
    layer = make(name)
    x = items(layer, 2, sum(lengths) * layer.hop, seed=sum(lengths))
    whole, final = layer(x)
    state, pieces = layer.init_state(2), []
    for chunk in x.split([n * layer.hop for n in lengths], dim=1):
        y, state = layer(chunk, state)
        pieces.append(y)
    assert tolerance.within(torch.cat(pieces, 1).detach().numpy(), whole.detach().numpy())
    for key, value in final.items():
        assert tolerance.within(state[key].detach().numpy(), value.detach().numpy())


# --- against float64 definitions ----------------------------------------------------------


@pytest.mark.parametrize("name", MAMBA)
def test_mamba_equals_its_definition(name):
    layer = make(name)
    values = weights(make(name))

    def definition(x):
        y, state = reference.mamba_mixer(x, values)
        return y, {key: state[key] for key in layer.state_spec()}

    verify_contract(layer, reference=definition)


@pytest.mark.parametrize("name", MAMBA2)
def test_mamba2_equals_its_definition(name):
    layer = make(name)
    norm = layer.norm
    options = {"ngroups": layer.ngroups, "dt_limit": layer.dt_limit}
    if norm is not None:
        options |= {"norm_before_gate": norm.norm_before_gate, "norm_group_size": norm.group_size}
    mixer = partial(reference.mamba2_mixer, weights=weights(make(name)), **options)

    def definition(x):
        y, state = mixer(x)
        return y, {key: state[key] for key in layer.state_spec()}

    verify_contract(layer, items=150, batch=2, reference=definition)


def test_dt_limit_clips():
    layer = make("mamba2 clipped")
    dt = layer._time_step(torch.linspace(-9, 9, 40)[None, :, None].expand(1, 40, layer.heads))
    assert dt.min() == torch.tensor(0.02)
    assert dt.max() == torch.tensor(0.05)


@pytest.mark.parametrize("name", SWA)
def test_attention_equals_its_definition(name):
    layer = make(name)
    values = weights(make(name))

    def project(x, which, heads):
        y = x @ values[f"{which}_proj.weight"].T + values.get(f"{which}_proj.bias", 0.0)
        return y.reshape(*x.shape[:2], heads, layer.head_dim)

    def definition(x):
        q, kv = layer.num_heads, layer.num_kv_heads
        ring = np.zeros((len(x), kv, layer.window, layer.head_dim))
        y, key, value, position = reference.sliding_window_attention(
            project(x, "q", q),
            project(x, "k", kv),
            project(x, "v", kv),
            layer.double().inv_freq.numpy(),
            ring,
            ring,
            np.zeros(len(x), np.int64),
            layer.scale,
        )
        y = y.reshape(*x.shape[:2], -1) @ values["o_proj.weight"].T + values.get("o_proj.bias", 0.0)
        return y, {"key": key, "value": value, "position": position}

    verify_contract(make(name), reference=definition)


@pytest.mark.parametrize("first", [6, 7, 8, 14, 15])
def test_attention_at_the_edges_of_the_window(first):
    layer = make("swa GQA")
    assert layer.window == 7
    verify_contract(
        layer, items=30, splits=[[first, 30 - first], [30 - first, first], [first, 1, 29 - first]]
    )


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_recurrence_equals_its_definition(name):
    layer = make(name)
    values = list(weights(make(name)).values())
    step = {"gru": reference.gru, "lstm": reference.lstm}[name]

    def definition(x):
        y, *states = step(x, *values, *[np.zeros((len(x), 5))] * len(layer.state_spec()))
        return y, dict(zip(layer.state_spec(), states, strict=True))

    verify_contract(layer, reference=definition)


@pytest.mark.parametrize(
    ("name", "module"), [("gru 2 layers", torch.nn.GRU), ("lstm 2 layers", torch.nn.LSTM)]
)
def test_recurrence_loads_torch_checkpoints(name, module):
    layer, theirs = make(name), module(3, 5, 2, batch_first=True)
    layer.load_state_dict(theirs.state_dict(), strict=True)
    x = items(layer, 2, 20)
    torch.testing.assert_close(layer(x)[0], theirs(x)[0])


@pytest.mark.parametrize("name", [n for n in FRONT if n.startswith("log mel")])
def test_log_mel_equals_its_definition(name):
    window, hop, n_fft, *mel, eps = {
        "log mel": (25, 10, 32, 5, 0.0, 500.0, 1e-6),
        "log mel whole hops": (32, 8, 32, 6, 20.0, 450.0, 1e-6),
        "log mel no overlap": (16, 16, 16, 3, 0.0, 500.0, 1e-3),
    }[name]
    filters = reference.mel_filters(1000, n_fft, *mel)
    layer = make(name)

    def definition(x):
        past = np.zeros((len(x), layer.past))
        y, past = reference.log_mel(x, reference.hann(window), filters, past, hop, n_fft, eps)
        return y, ({"past": past} if layer.past else {})

    verify_contract(layer, reference=definition)


def test_log_mel_survives_16_bit_weights():
    x = items(make("log mel"), 2, 100)
    torch.testing.assert_close(make("log mel").half()(x)[0], make("log mel")(x)[0])


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # 1e-3: a variance a million times below the prior
@pytest.mark.parametrize("name", ["running norm", "running norm slow"])
def test_running_norm_equals_its_definition(name, scale):
    layer = make(name)
    prior_mean, prior_log_var = weights(make(name)).values()
    decay = layer.decay
    assert decay == pytest.approx(np.exp(-1 / layer.time_constant), rel=1e-7)

    def definition(x):
        mean, var, y = prior_mean, np.exp(prior_log_var), np.empty_like(x)
        for t in range(x.shape[1]):
            mean = decay * mean + (1 - decay) * x[:, t]
            var = decay * var + (1 - decay) * (x[:, t] - mean) ** 2
            y[:, t] = (x[:, t] - mean) / np.sqrt(var + layer.eps)
        var = var - decay ** x.shape[1] * np.exp(prior_log_var)
        position = np.full(len(x), x.shape[1])
        return y, {
            "mean": (mean - prior_mean)[:, None, None],
            "var": var[:, None, None],
            "position": position,
        }

    verify_contract(layer, x=scale * items(layer, 2, 100), reference=definition)


def test_running_norm_forgets_its_prior():
    layer = L.RunningNorm(2, 20.0, eps=1e-12)
    x = 1e-4 * torch.randn(1, 2000, 2, generator=torch.Generator().manual_seed(0))
    whole, _ = layer(x)
    state, pieces = None, []
    for item in x.split(1, dim=1):
        y, state = layer(item, state)
        pieces.append(y)
    assert tolerance.within(torch.cat(pieces, 1).detach().numpy(), whole.detach().numpy())
    assert whole[:, 1000:].std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", CONV)
def test_conv_equals_torch(name):
    layer = make(name)
    double = make(name).double()
    stride, dilation, K = layer.stride, layer.dilation, layer.kernel_size
    activation = {"conv K beyond T": F.relu, "conv depthwise gelu": F.gelu}.get(name)
    if name in ("conv stride 2", "conv depthwise", "conv depthwise K 1"):
        activation = F.silu

    def definition(x):
        padded = F.pad(torch.from_numpy(x).transpose(1, 2), ((K - 1) * dilation + 1 - stride, 0))
        y = F.conv1d(padded, double.weight, double.bias, stride, 0, dilation, layer.groups)
        return (activation(y) if activation else y).transpose(1, 2).detach().numpy()

    verify_contract(layer, reference=definition)


@pytest.mark.parametrize("name", ["rms norm", "layer norm"])
def test_norms_equal_torch(name):
    layer, x = make(name), items(make(name), 2, 9)
    if name == "rms norm":
        wanted = F.rms_norm(x, (7,), layer.weight, layer.eps)
    else:
        wanted = F.layer_norm(x, (7,), layer.weight, layer.bias, layer.eps)
    torch.testing.assert_close(layer(x)[0], wanted)


# --- names, starts, errors ----------------------------------------------------------------


def test_checkpoint_names():
    assert set(L.Mamba(6).state_dict()) == {
        *("in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight"),
        *("dt_proj.bias", "A_log", "D", "out_proj.weight"),
    }
    mamba2 = L.Mamba2(6, headdim=4).state_dict()
    assert set(mamba2) == {
        *("in_proj.weight", "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D"),
        *("norm.weight", "out_proj.weight"),
    }
    assert mamba2["conv1d.weight"].shape == (12 + 2 * 128, 1, 4)
    assert set(L.SlidingWindowAttention(8, 2, 4).state_dict()) == {f"{p}_proj.weight" for p in "qkvo"}


def test_mamba_starts_with_time_steps_in_range():
    dt = F.softplus(L.Mamba(64).dt_proj.bias)
    assert dt.min() >= 0.999e-3
    assert dt.max() <= 0.1001


def test_state_layouts():
    assert {k: v.shape for k, v in L.Mamba(6, d_state=5).state_spec().items()} == {
        "conv": (3, 12),
        "ssm": (5, 12),
    }
    spec = L.Mamba2(8, d_state=3, headdim=4, ngroups=2).state_spec()
    assert {k: v.shape for k, v in spec.items()} == {"conv": (3, 28), "ssm": (4, 3, 4)}
    assert L.state_bytes(L.SlidingWindowAttention(8, 2, 5)) == 2 * 4 * 5 * 8 + 8


def test_attention_is_the_same_late_in_a_stream():
    layer = make("swa")
    x = items(layer, 1, 20)
    _, state = layer(x[:, :10])
    late = {**state, "position": state["position"] + layer.window * 10**15}
    assert torch.equal(layer(x[:, 10:], state)[0], layer(x[:, 10:], late)[0])


def test_a_tied_head_shares_its_weight():
    embedding = L.Embedding(11, 5)
    head = L.Head(5, 11, tied=embedding)
    assert head.weight is embedding.weight
    assert head.bias is None


def test_masked_rows_stop_gradients_of_nan():
    layer = make("gru")
    x = items(layer, 2, 4)
    x[1] = torch.nan
    y, _ = L.masked_step(layer, x, layer.init_state(2), torch.tensor([True, False]))
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert not y[1].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: L.Linear(0, 3), "in_features = 0"),
        (lambda: L.Linear(True, 3), "in_features = True"),
        (lambda: L.Activation("swish"), "'swish' is unknown"),
        (lambda: L.CausalConv1d(4, 6, 3, groups=4), "groups = 4 does not divide 6"),
        (lambda: L.CausalConv1d(4, 6, 3, lookahead=3), "beyond the 2 items"),
        (lambda: L.CausalConv1d(4, 6, 5, stride=2, lookahead=3), "stride = 2 does not divide 3"),
        (lambda: L.LogMel(1000, 10, 20, 4), "hop 20 <= window 10"),
        (lambda: L.LogMel(1000, 20, 10, 4, eps=0.0), "eps = 0.0"),
        (lambda: L.LogMel(1000, 20, 10, 4, f_max=600), "mel range"),
        (lambda: L.LogMel(1000, 20, 10, 40), "holds no bin"),
        (lambda: L.RunningNorm(3, 0), "time_constant = 0"),
        (lambda: L.RunningNorm(3, 1e9), r"at most 1e\+06 items"),
        (lambda: L.RunningNorm(3, 10, eps=0), "eps = 0"),
        (lambda: L.Mamba(6, dt_min=0.2), "dt_min"),
        (lambda: L.Mamba(6, d_conv=0), "d_conv = 0"),
        (lambda: L.Mamba2(6, headdim=5), "headdim = 5 does not divide 12"),
        (lambda: L.Mamba2(6, headdim=4, ngroups=2), "ngroups = 2 does not divide 3"),
        (lambda: L.Mamba2(6, headdim=4, dt_limit=(0.2, 0.1)), "dt_limit"),
        (lambda: L.Mamba2(6, headdim=4, norm_group_size=5), "norm_group_size = 5"),
        (lambda: L.SlidingWindowAttention(8, 3, 4), "num_heads = 3 does not divide 8"),
        (lambda: L.SlidingWindowAttention(8, 2, 4, 3), "num_kv_heads = 3"),
        (lambda: L.SlidingWindowAttention(6, 2, 4), "rotary_dim = 3"),
        (lambda: L.Head(5, 3, tied=L.Embedding(4, 5)), r"\(4, 5\)"),
    ],
)
def test_impossible_arguments_are_refused(build, message):
    with pytest.raises(LayerError, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("linear")(torch.zeros(2, 3, 4)), r"\(2, 3, 4\).*shape \(5,\)"),
        (lambda: make("linear")(torch.zeros(5)), "batch, time"),
        (lambda: make("conv stride 2")(torch.zeros(1, 3, 3)), "T = 3 is not a multiple of the hop of 2"),
        (lambda: make("gru")(torch.zeros(1, 3, 3), {}), "init_state"),
        (
            lambda: L.masked_step(make("linear"), torch.zeros(2, 3, 5), {}, torch.ones(2)),
            "a bool for each of 2 rows",
        ),
        (lambda: L.forward_ragged(make("linear"), torch.zeros(2, 3, 5), [1]), "one for each of 2 rows"),
        (lambda: L.forward_ragged(make("linear"), torch.zeros(2, 3, 5), [1, 4]), "length of 4"),
        (lambda: L.forward_ragged(make("conv stride 2"), torch.zeros(2, 4, 3), [1, 4]), "length of 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(call, message):
    with pytest.raises(LayerError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["mamba", "mamba2", "swa", "gru", "lstm", "running norm", "log mel"])
def test_autocast_leaves_the_recurrence_alone(name, dtype):
    layer = make(name)
    x = items(layer, 2, 6 * layer.hop)
    _, state = layer(x)
    with torch.autocast("cpu", dtype):
        y, found = layer(x)
    assert tolerance.within(y.float().detach().numpy(), layer(x)[0].detach().numpy(), str(dtype)[6:])
    assert {key: value.dtype for key, value in found.items()} == {k: v.dtype for k, v in state.items()}
    if y.requires_grad:
        y.float().sum().backward()


@pytest.mark.parametrize("name", RECURRENT)
def test_states_may_be_float64(name):
    layer = make(name)
    state = {key: value.double() for key, value in layer.init_state(2).items()}
    y, state = layer(items(layer, 2, 3), state)
    assert y.dtype == torch.float32
    assert {value.dtype for value in state.values()} == {torch.float64}
