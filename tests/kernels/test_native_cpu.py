"""The native kernels of every instruction set that this machine runs, against the float64
definitions and against themselves: any split, in place, inside wider matrices, by several threads'
parts - the same bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_calls import Call, Native, available
from operators import (
    CASES,
    Case,
    case_name,
    causal_conv1d,
    selective_scan,
    sliding_window_attention,
    state_space_dual,
)

from streamssm import tolerance
from streamssm.kernels import reference

#: of each operator, the inputs with a time axis
ITEMS = {
    "causal_conv1d": ("x",),
    "selective_scan": ("x", "dt", "B", "C", "z"),
    "state_space_dual": ("x", "dt", "B", "C"),
    "sliding_window_attention": ("q", "k", "v"),
}


def test_the_best_instruction_set_is_chosen(library: ctypes.CDLL) -> None:
    library.test_best.restype = ctypes.c_char_p
    names = [one.name for one in available(library)]
    assert library.test_best().decode() == names[-1]


# ------------------------------------------------------------- against the definitions


@cache
def expected(case_index: int) -> list[np.ndarray]:
    case = COVERED[case_index]
    return list(getattr(reference, case.reference_name)(*case.inputs.values(), **case.attributes))


def row(case: Case, b: int) -> dict[str, np.ndarray]:
    """The inputs of one sequence of the batch, in float32."""
    states = list(case.inputs)[-case.states :]
    batched = {*ITEMS[case.reference_name], *states}
    rows = {name: value[b] if name in batched else value for name, value in case.inputs.items()}
    return {
        name: value if value.dtype == np.int64 else np.ascontiguousarray(value, np.float32)
        for name, value in rows.items()
    }


def run(native: Native, case: Case, how: Call | None = None) -> list[np.ndarray]:
    call = getattr(native, case.reference_name)
    batch = len(case.inputs[ITEMS[case.reference_name][0]])
    rows = [call(how or Call(), **row(case, b), **case.attributes) for b in range(batch)]
    return [np.stack(results) for results in zip(*rows, strict=True)]


def assert_close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert tolerance.within(a, b, "float32"), f"result {i}: errors {tolerance.error(a, b)}"


WIDE = [  # registers of every width full, partly full, and more than one
    causal_conv1d(40, D=37, K=3),
    causal_conv1d(5, D=130, K=9),
    selective_scan(70, D=37, N=37),
    selective_scan(33, D=16, N=128),
    state_space_dual(70, H=6, P=64, G=3, N=37),
    state_space_dual(33, H=2, P=37, G=1, N=128),
    state_space_dual(9, H=2, P=130, G=2, N=3),
    sliding_window_attention(70, 130, 200, heads=(12, 4), dh=64, R=64),
    sliding_window_attention(20, 150, 0, heads=(6, 1), dh=37, R=6),
    sliding_window_attention(20, 64, 63, heads=(2, 2), dh=40, R=32),
]
COVERED = [case for case in CASES if case.reference_name in ITEMS] + WIDE


@pytest.mark.parametrize("index", range(len(COVERED)), ids=lambda i: case_name(COVERED[i]))
def test_kernels_are_the_definition(native: Native, index: int) -> None:
    assert_close(run(native, COVERED[index]), expected(index))


def test_attention_survives_scores_of_any_size(native: Native) -> None:
    for size in (-1e18, 1e18, -1e30, 1e30):
        case = sliding_window_attention(3, 8, 0, R=0)
        case.inputs["q"][:], case.inputs["k"][:] = size, 1e16
        assert_close(run(native, case)[:1], [case.inputs["v"].cumsum(1).repeat(2, 2) * AVERAGE])


AVERAGE = 1.0 / np.arange(1, 4)[None, :, None, None]


def test_attention_does_not_age(native: Native) -> None:
    young = sliding_window_attention(40, 8, 8)
    for age in (8 * 10**15, 2**62 - 64):
        aged = replace(young, inputs=young.inputs | {"position": young.inputs["position"] + age})
        *results, position = run(native, young)
        *aged_results, aged_position = run(native, aged)
        assert [a.tobytes() for a in results] == [b.tobytes() for b in aged_results]
        assert np.array_equal(position + age, aged_position)


def test_a_step_of_nothing_moves_no_state(native: Native) -> None:
    case = selective_scan(40)
    case.inputs["dt"][:] = -200.0
    assert run(native, case)[1].tobytes() == case.inputs["state"].astype(np.float32).tobytes()


# ------------------------------------------------------------------ against themselves


@st.composite
def cases(draw: st.DrawFn) -> Case:
    operator = draw(st.sampled_from(sorted(ITEMS)))
    T = draw(st.integers(0, 70))
    small = st.sampled_from((1, 2, 3, 5, 8, 16, 17, 37))
    if operator == "causal_conv1d":
        return causal_conv1d(T, 1, draw(small), draw(st.integers(1, 8)), draw(st.booleans()))
    if operator == "selective_scan":
        return selective_scan(T, 1, draw(small), draw(small))
    G, per = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    if operator == "state_space_dual":
        return state_space_dual(T, 1, G * per, draw(st.sampled_from((1, 3, 16, 37, 64, 130))), G, draw(small))
    dh = draw(st.sampled_from((1, 3, 8, 32, 37, 64)))
    R = 2 * draw(st.integers(0, dh // 2))
    W = draw(st.sampled_from((1, 2, 7, 16, 65, 100)))
    return sliding_window_attention(T, W, draw(st.integers(0, 300)), 1, (G * per, G), dh, R)


def parts(T: int, cuts: list[int]) -> Iterator[slice]:
    edges = [0, *sorted(cut for cut in cuts if cut <= T), T]
    return (slice(a, b) for a, b in pairwise(edges))


def run_split(native: Native, case: Case, cuts: list[int], how: Call) -> list[bytes]:
    name = case.reference_name
    inputs = row(case, 0)
    outputs = []
    for part in parts(len(inputs[ITEMS[name][0]]), cuts):
        sliced = {key: value[part] if key in ITEMS[name] else value for key, value in inputs.items()}
        y, *following = getattr(native, name)(how, **sliced, **case.attributes)
        outputs.append(y)
        inputs |= dict(zip(list(inputs)[-case.states :], following, strict=True))
    return [np.concatenate(outputs).tobytes(), *(np.asarray(f).tobytes() for f in following)]


@settings(max_examples=150, deadline=None)
@given(case=cases(), cuts=st.lists(st.integers(0, 70), max_size=5), margin=st.integers(1, 20), data=st.data())
def test_however_it_is_called_the_bytes_are_the_same(
    native: Native, case: Case, cuts: list[int], margin: int, data: st.DataObject
) -> None:
    whole = run_split(native, case, [], Call())
    channels = case.reference_name in ("causal_conv1d", "selective_scan")
    edges = tuple(range(16, 160, 16)) if channels else tuple(range(1, 16))
    chosen = tuple(sorted(data.draw(st.sets(st.sampled_from(edges)))))
    for how in (
        Call(),
        Call(in_place=True),
        Call(margin=margin),
        Call(cuts=chosen),
        Call(margin, True, chosen),
    ):
        assert run_split(native, case, cuts, how) == whole, how


# --------------------------------------------------------------------------- functions


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the exact value, where that is a normal float32."""
    normal = np.abs(exact) >= 2.0**-126
    spacing = np.spacing(np.abs(exact[normal]).astype(np.float32)).astype(np.float64)
    return np.abs(found[normal] - exact[normal]) / spacing


def everywhere(low: float, high: float) -> np.ndarray:
    """Evenly over the range, and by the logarithm to both sides of 0."""
    near = np.geomspace(1e-30, max(-low, high), 200_000)
    points = np.concatenate([np.linspace(low, high, 400_000), near, -near]).astype(np.float32)
    return points[(points >= np.float32(low)) & (points <= np.float32(high))]


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "bound"),
    [
        ("exp", np.exp, -87.33, 88.72, 1.1),
        ("exp2", np.exp2, -126.0, 127.49, 2.0),
        ("sigmoid", reference.sigmoid, -87.0, 100.0, 2.5),
        ("silu", reference.silu, -87.0, 100.0, 2.6),
        ("softplus", reference.softplus, -87.0, 100.0, 3.5),
    ],
)
def test_functions_keep_their_error_bounds(native, function, exact, low, high, bound) -> None:
    points = everywhere(low, high)
    assert ulps(native.map(function, points), exact(points.astype(np.float64))).max() <= bound


@pytest.mark.parametrize(
    ("function", "edges"),
    [
        ("exp", {-np.inf: 0, -1e30: 0, -104: 0, 0: 1, 89: np.inf, 1e30: np.inf, np.inf: np.inf}),
        (
            "exp2",
            {-1e30: 0, -150: 0, 0: 1, 1e-30: 1, -1e-30: 1, 10: 1024, 129: np.inf, 1e30: np.inf},
        ),
        ("sigmoid", {-np.inf: 0, -200: 0, 0: 0.5, 200: 1, np.inf: 1}),
        ("silu", {-1e30: 0, -200: 0, 0: 0, 200: 200, 1e30: 1e30, np.inf: np.inf}),
        ("softplus", {-np.inf: 0, -200: 0, 0: np.log(2), 25: 25, 1e30: 1e30, np.inf: np.inf}),
    ],
)
def test_functions_at_their_edges(native, function, edges) -> None:
    found = native.map(function, np.array(list(edges)))
    assert np.array_equal(found, np.array(list(edges.values()), np.float32))
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert not np.isfinite(native.map(function, nans)).any()
    assert np.isnan(native.map(function, nans)).all() or function == "exp2"


def test_float16_all_values_and_rounding(native: Native) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # a signalling NaN is no news
        values = bits.view(np.float16).astype(np.float32)
    wide = native.widen("half", bits)
    assert np.array_equal(wide, values, equal_nan=True)
    keep = ~np.isnan(values)
    assert np.array_equal(native.narrow("half", wide)[keep], bits[keep])
    assert np.isnan(native.narrow("half", wide[~keep]).view(np.float16)).all()
    points = between(np.sort(values[np.isfinite(values)]))
    with np.errstate(over="ignore"):
        assert np.array_equal(native.narrow("half", points), points.astype(np.float16).view(np.uint16))


def between(values: np.ndarray) -> np.ndarray:
    """The middle of every two neighbours, and the floats around it."""
    middle = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    inf = np.float32(np.inf)
    return np.concatenate(
        [middle, np.nextafter(middle, inf), np.nextafter(middle, -inf), [inf, -inf, 65520.0]]
    )


def bfloat16_of(x: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even, by exact arithmetic on the two candidates."""
    bits = x.view(np.uint32)
    low = bits & np.uint32(0xFFFF0000)
    remainder = bits - low
    odd = (low >> np.uint32(16)) & np.uint32(1)
    up = (remainder > 0x8000) | ((remainder == 0x8000) & (odd == 1))
    return ((low >> np.uint32(16)) + up).astype(np.uint16)


def test_bfloat16_all_values_and_rounding(native: Native) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    wide = native.widen("bfloat16", bits)
    assert np.array_equal(wide.view(np.uint32), values.view(np.uint32))
    keep = ~np.isnan(values)
    assert np.array_equal(native.narrow("bfloat16", wide)[keep], bits[keep])
    back = native.narrow("bfloat16", values[~keep])
    assert np.isnan((back.astype(np.uint32) << 16).view(np.float32)).all()
    quiet_nan_in_low_bits = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    found = native.narrow("bfloat16", quiet_nan_in_low_bits).astype(np.uint32) << 16
    assert np.isnan(found.view(np.float32)).all()
    points = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    points[:65536] = (bits.astype(np.uint32) << 16) | 0x8000
    x = points.view(np.float32)
    x = x[~np.isnan(x)]
    assert np.array_equal(native.narrow("bfloat16", x), bfloat16_of(x))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 15, 17, 31])
def test_conversions_of_any_length(native: Native, count: int) -> None:
    x = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    assert np.array_equal(native.narrow("half", x), x.astype(np.float16).view(np.uint16))
    assert np.array_equal(native.widen("half", native.narrow("half", x)), x.astype(np.float16))
    assert np.array_equal(native.narrow("bfloat16", x), bfloat16_of(x))


# --------------------------------------------------------------------------- denormals


def test_flushing_is_for_its_own_duration(library: ctypes.CDLL) -> None:
    before = library.test_float_control()
    words = (ctypes.c_uint64 * 4)()
    library.test_flush_denormals(words)
    assert words[0] == words[1] == words[2] != before
    assert words[3] == before


def test_kernels_flush_denormals_and_restore(native: Native) -> None:
    case = selective_scan(40)
    case.inputs["state"][:] = 1e-37
    case.inputs["dt"][:], case.inputs["A"][:], case.inputs["x"][:] = 0.0, -1.0, 0.0
    tiny = np.full(3, 1e-38, np.float32)
    library = native.library
    before = library.test_float_control()
    state = run(native, case)[1]
    assert library.test_float_control() == before
    assert not state.any()
    assert (tiny / 4 > 0).all(), "denormals are NumPy's again"
