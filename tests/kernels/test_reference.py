"""The reference against itself: one item at a time, the whole, and any split are the same.

The step and the whole-sequence form of each op are independent formulations (recurrence and
parallel scan, recurrence and matrix form, relative and absolute rotary), so that their
equality is evidence for both. Comparison with PyTorch: test_reference_torch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm.kernels import reference as ref

BATCH = 2
#: T around the conv width (K = 4) and the window (W = 5): 0, 1, K - 2, W - 1, W, W + 1, more than 2 W
LENGTHS = [0, 1, 2, 4, 5, 6, 13]


@dataclass
class Case:
    """An op with inputs: ``items`` are arrays [B, T, ...], ``fixed`` the weights, ``state`` the state."""

    whole: Callable[..., tuple]
    step: Callable[..., tuple]
    items: dict[str, np.ndarray]
    fixed: dict[str, Any]
    state: dict[str, Any]

    def run(self, part: slice, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        y, *after = self.whole(**{k: x[:, part] for k, x in self.items.items()}, **self.fixed, **state)
        return y, dict(zip(state, after, strict=True))

    def run_item(self, t: int, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        y, *after = self.step(**{k: x[:, t] for k, x in self.items.items()}, **self.fixed, **state)
        return y, dict(zip(state, after, strict=True))


def conv(rng, T, K=4, silu=True):
    D = 3
    return Case(
        ref.causal_conv1d,
        ref.causal_conv1d_step,
        {"x": rng.normal(size=(BATCH, T, D))},
        {"weight": rng.normal(size=(K, D)), "bias": rng.normal(size=D), "silu": silu},
        {"state": rng.normal(size=(BATCH, K - 1, D))},
    )


def scan(rng, T):
    D, N = 3, 4
    items = {name: rng.normal(size=(BATCH, T, D)) for name in ("x", "dt", "z")}
    items |= {name: rng.normal(size=(BATCH, T, N)) for name in ("B", "C")}
    fixed = {"A": -np.exp(rng.normal(size=(N, D))), "D": rng.normal(size=D), "dt_bias": rng.normal(size=D)}
    return Case(
        ref.selective_scan, ref.selective_scan_step, items, fixed, {"state": rng.normal(size=(BATCH, N, D))}
    )


def ssd(rng, T, G=1):
    H, P, N = 4, 3, 2
    items = {"x": rng.normal(size=(BATCH, T, H, P)), "dt": np.exp(rng.normal(size=(BATCH, T, H)))}
    items |= {name: rng.normal(size=(BATCH, T, G, N)) for name in ("B", "C")}
    fixed = {"A": -np.exp(rng.normal(size=H)), "D": rng.normal(size=(H, P))}
    state = {"state": rng.normal(size=(BATCH, H, N, P))}
    return Case(ref.state_space_dual, ref.state_space_dual_step, items, fixed, state)


def attention(rng, T, Hq=4, Hkv=2, rotary_dim=6, W=5, seen=(0, 9)):
    """``seen``: age of each stream of the batch when the case begins."""
    dh = 6
    kv = (len(seen), Hkv, W, dh)
    items = {"q": rng.normal(size=(len(seen), T, Hq, dh))}
    items |= {name: rng.normal(size=(len(seen), T, Hkv, dh)) for name in ("k", "v")}
    fixed = {"inv_freq": ref.rotary_frequencies(rotary_dim), "scale": dh**-0.5}
    written = (np.arange(W) < np.array(seen)[:, None])[:, None, :, None]
    state = {name: rng.normal(size=kv) * written for name in ("key", "value")}
    state["position"] = np.array(seen)
    return Case(ref.sliding_window_attention, ref.sliding_window_attention_step, items, fixed, state)


def mamba(rng, T, bias=True):
    d, D, N, K, R = 4, 6, 3, 4, 2
    shapes = {"in_proj.weight": (2 * D, d), "conv1d.weight": (D, 1, K), "conv1d.bias": (D,)}
    shapes |= {"x_proj.weight": (R + 2 * N, D), "dt_proj.weight": (D, R), "dt_proj.bias": (D,)}
    shapes |= {"A_log": (D, N), "D": (D,), "out_proj.weight": (d, D)}
    if bias:
        shapes |= {"in_proj.bias": (2 * D,), "out_proj.bias": (d,)}
    weights = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    state = {"conv": rng.normal(size=(BATCH, K - 1, D)), "ssm": rng.normal(size=(BATCH, N, D))}
    u = rng.normal(size=(BATCH, T, d))
    return Case(ref.mamba_mixer, ref.mamba_mixer_step, {"u": u}, {"weights": weights}, {"state": state})


def mamba2(rng, T, G=1, norm=True, skip_per_channel=False, conv_bias=True, **options):
    d, H, P, N, K = 4, 4, 3, 2, 4
    D, channels = H * P, H * P + 2 * G * N
    shapes = {"in_proj.weight": (D + channels + H, d), "conv1d.weight": (channels, 1, K)}
    shapes |= {
        "dt_bias": (H,),
        "A_log": (H,),
        "D": (D if skip_per_channel else H,),
        "out_proj.weight": (d, D),
    }
    if norm:
        shapes["norm.weight"] = (D,)
    if conv_bias:
        shapes["conv1d.bias"] = (channels,)
    weights = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    state = {"conv": rng.normal(size=(BATCH, K - 1, channels)), "ssm": rng.normal(size=(BATCH, H, N, P))}
    u = rng.normal(size=(BATCH, T, d))
    fixed = {"weights": weights, "ngroups": G, **options}
    return Case(ref.mamba2_mixer, ref.mamba2_mixer_step, {"u": u}, fixed, {"state": state})


def rnn(rng, T, gates=3):
    size, hidden = 3, 4
    whole, step, names = {3: (ref.gru, ref.gru_step, ["state"]), 4: (ref.lstm, ref.lstm_step, ["h", "c"])}[
        gates
    ]
    fixed = {"weight_ih": rng.normal(size=(gates * hidden, size)), "bias_ih": rng.normal(size=gates * hidden)}
    fixed |= {
        "weight_hh": rng.normal(size=(gates * hidden, hidden)),
        "bias_hh": rng.normal(size=gates * hidden),
    }
    state = {name: np.tanh(rng.normal(size=(BATCH, hidden))) for name in names}
    return Case(whole, step, {"x": rng.normal(size=(BATCH, T, size))}, fixed, state)


CASES: dict[str, Callable[..., Case]] = {
    "conv": conv,
    "conv of width 1": partial(conv, K=1, silu=False),
    "conv of width 2": partial(conv, K=2),
    "scan": scan,
    "ssd": ssd,
    "ssd, 2 groups": partial(ssd, G=2),
    "ssd, a group a head": partial(ssd, G=4),
    "attention": attention,
    "attention, every head its own": partial(attention, Hkv=4, seen=(3, 4)),
    "attention, MQA, part rotary": partial(attention, Hkv=1, rotary_dim=4, seen=(5, 6)),
    "attention, no rotary": partial(attention, rotary_dim=0, seen=(0, 1)),
    "attention, window 1": partial(attention, W=1, seen=(0, 7)),
    "mamba": mamba,
    "mamba without biases": partial(mamba, bias=False),
    "mamba2": mamba2,
    "mamba2, groups, limit": partial(
        mamba2, G=2, dt_limit=(0.3, 0.6), norm_group_size=6, skip_per_channel=True
    ),
    "mamba2, norm before gate": partial(mamba2, norm_before_gate=True, norm_group_size=3, conv_bias=False),
    "mamba2 without norm": partial(mamba2, norm=False),
    "gru": partial(rnn, gates=3),
    "lstm": partial(rnn, gates=4),
}


def make(name: str, T: int, seed: int = 0) -> Case:
    return CASES[name](np.random.default_rng(seed), T)


def by_steps(case: Case) -> tuple[np.ndarray, dict[str, Any]]:
    T = next(iter(case.items.values())).shape[1]
    outputs, state = [case.run(slice(0, 0), case.state)[0]], case.state
    for t in range(T):
        y, state = case.run_item(t, state)
        outputs.append(y[:, None])
    return np.concatenate(outputs, axis=1), state


def by_parts(case: Case, T: int, cuts: list[int]) -> tuple[np.ndarray, dict[str, Any]]:
    outputs, state = [], case.state
    edges = [0, *sorted(cuts), T]
    for start, stop in pairwise(edges):
        y, state = case.run(slice(start, stop), state)
        outputs.append(y)
    return np.concatenate(outputs, axis=1), state


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Equal up to float64 rounding over some thousand operations, relative to the largest value."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = tuple(actual.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, tolerance)
        return
    largest = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest, strict=True)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_whole(name, T):
    case = make(name, T)
    assert_same(by_steps(case), case.run(slice(None), case.state))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_any_split_equals_the_whole(data):
    name, T = data.draw(st.sampled_from(sorted(CASES))), data.draw(st.integers(0, 16))
    cuts = data.draw(st.lists(st.integers(0, T), max_size=4))
    case = make(name, T, seed=data.draw(st.integers(0, 99)))
    assert_same(by_parts(case, T, cuts), case.run(slice(None), case.state))


@pytest.mark.parametrize("name", CASES)
def test_no_items_change_nothing(name):
    case = make(name, 3)
    y, after = case.run(slice(0, 0), case.state)
    assert y.shape[1] == 0
    assert y.dtype == np.float64
    assert_same(after, case.state, tolerance=0.0)


@pytest.mark.parametrize("name", CASES)
def test_the_given_state_is_left_alone(name):
    case, twin = make(name, 6), make(name, 6)
    results = [case.run(slice(0, T), case.state) for T in (0, 6)] + [case.run_item(0, case.state)]
    for value in [leaf for _, after in results for leaf in leaves(after)]:
        value += 1  # a result that shared memory with the given state would change it here
    assert_same(case.state, twin.state, tolerance=0.0)


def leaves(state: Any) -> list[np.ndarray]:
    return (
        [leaf for value in state.values() for leaf in leaves(value)] if isinstance(state, dict) else [state]
    )


@pytest.mark.parametrize("name", ["mamba", "mamba2, groups, limit"])
def test_a_mixer_without_state_starts_at_zero(name):
    case = make(name, 5)
    zeros = {"state": {k: np.zeros_like(v) for k, v in case.state["state"].items()}}
    assert_same(case.run(slice(None), {"state": None}), case.run(slice(None), zeros), tolerance=0.0)


# ------------------------------------------------------------------- each op's own


@pytest.mark.parametrize("T", [63, 64, 65, 150])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_ssd_does_not_depend_on_the_chunk(T, chunk):
    case = make("ssd, 2 groups", T)
    case.fixed["chunk"] = chunk
    whole = case.run(slice(None), case.state)
    del case.fixed["chunk"]
    assert_same(whole, by_steps(case))


def test_ssd_keeps_small_steps_beside_huge_ones():
    """As a difference of running sums, the decay of the small steps would lose 1e6 / 1e-3 in precision."""
    case = make("ssd", 12)
    case.items["dt"] = np.full_like(case.items["dt"], 1e-3)
    case.items["dt"][:, 4] = 1e6
    assert_same(by_steps(case), case.run(slice(None), case.state), tolerance=1e-14)


@pytest.mark.parametrize("dt", [-800.0, -30.0, 19.99, 20.01, 800.0])
def test_scan_at_extreme_time_steps(dt):
    case = make("scan", 9)
    case.items["dt"][:, 3:6] = dt
    with np.errstate(over="raise", invalid="raise"):
        assert_same(by_steps(case), case.run(slice(None), case.state))


def test_dt_limit_clips_in_the_step_too():
    free, limited = make("mamba2, groups, limit", 4), make("mamba2, groups, limit", 4)
    free.fixed["dt_limit"] = (0.0, float("inf"))
    assert np.abs(by_steps(free)[0] - by_steps(limited)[0]).max() > 1e-3


@pytest.mark.parametrize("op", [ssd, attention], ids=["ssd", "attention"])
def test_heads_that_do_not_divide_are_refused(op):
    case = op(np.random.default_rng(0), 2, **({"G": 3} if op is ssd else {"Hkv": 3}))
    with pytest.raises(ValueError, match="4 heads cannot share 3 groups"):
        case.run(slice(None), case.state)


# ------------------------------------------------------------------- attention


def test_items_live_in_slot_index_mod_window():
    case = attention(np.random.default_rng(0), 7, W=5, seen=(0,))
    for T in (3, 7):
        _, state = case.run(slice(0, T), case.state)
        for slot in range(5):
            indices = [i for i in range(T) if i % 5 == slot]
            expected = case.items["k"][0, indices[-1]] if indices else np.zeros((2, 6))
            np.testing.assert_array_equal(state["key"][0, :, slot], expected)
        assert state["position"].tolist() == [T]
        assert state["position"].dtype == np.int64


@pytest.mark.parametrize("age", range(8))
def test_an_item_is_seen_for_exactly_a_window(age):
    """Poison item 2 and look from ``age`` items later: visible below W = 5, gone from W on."""
    case = attention(np.random.default_rng(0), 10, W=5, seen=(0,))
    clean = by_steps(case)[0]
    case.items["v"][:, 2] += 100.0
    for poisoned in (by_steps(case)[0], case.run(slice(None), case.state)[0]):
        assert (np.abs(poisoned - clean)[:, 2 + age].max() > 1.0) == (age < 5)


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_scores_of_any_size_are_safe(scale):
    case = attention(np.random.default_rng(0), 7)
    case.items["q"], case.items["k"] = (np.abs(case.items[name]) for name in "qk")
    case.fixed["scale"] = scale
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert_same(by_steps(case), case.run(slice(None), case.state), tolerance=1e-9)


def shifted(case: Case, start: int) -> Case:
    """The same stream, as if ``start`` items had been seen before its first: the ring turns along."""
    W = case.state["key"].shape[2]
    turned = {name: np.roll(case.state[name], start % W, axis=2) for name in ("key", "value")}
    return Case(
        case.whole, case.step, case.items, case.fixed, {**turned, "position": case.state["position"] + start}
    )


@pytest.mark.parametrize("start", [10**9, 10**9 + 3, 2**60 + 1])
def test_relative_rotary_does_not_age(start):
    case = attention(np.random.default_rng(0), 12, seen=(5, 9))
    assert_same(by_steps(shifted(case, start))[0], by_steps(case)[0], tolerance=1e-14)


@pytest.mark.parametrize("start", [10**9, 10**9 + 3])
def test_absolute_rotary_is_shift_invariant_to_the_precision_of_its_angles(start):
    """Near 1e9 float64 numbers are 2**-23 apart, so an angle is off by up to 2**-24 and the angle
    between a query and a key by 2**-23 = 1.2e-7. A score turns into at most scale |q| |k| times that
    and y into twice as much of max |v|; here scale |q| |k| < 7 and |v| < 4, in all 7e-6."""
    case = attention(np.random.default_rng(0), 12, seen=(5, 9))
    largest = case.fixed["scale"] * max(
        np.linalg.norm(case.items["q"], axis=-1).max() * np.linalg.norm(keys, axis=-1).max()
        for keys in (case.items["k"], case.state["key"])
    )
    reach = max(np.abs(case.items["v"]).max(), np.abs(case.state["value"]).max())
    young, old = (c.run(slice(None), c.state)[0] for c in (case, shifted(case, start)))
    assert np.abs(old - young).max() < 2**-23 * largest * 2 * reach < 1e-5


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 10**4), st.sampled_from([0, 2, 4, 6]))
def test_rotary_scores_depend_on_the_distance_only(i, distance, rotary_dim):
    rng = np.random.default_rng(i)
    q, k = rng.normal(size=(2, 6))
    inv_freq = ref.rotary_frequencies(rotary_dim)
    absolute = ref.rotary(q, np.array(i + distance), inv_freq) @ ref.rotary(k, np.array(i), inv_freq)
    relative = ref.rotary(q, np.array(distance), inv_freq) @ k
    assert abs(absolute - relative) < 1e-8
