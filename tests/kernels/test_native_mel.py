"""The native LogMel of every instruction set that this machine runs: against the float64 definition,
and the same bytes for any split, in place, by several threads' parts, wherever its scratch lies."""

from __future__ import annotations

import ctypes as c
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_calls import Native, Range, pointer
from operators import CASES, POINTS, Case, case_name, log_mel
from test_native_cpu import ulps

from streamssm import tolerance
from streamssm.kernels import reference

MEL = [case for case in CASES if case.operator == "LogMel"]


class Mel:
    """The tables of a case and calls with them."""

    def __init__(self, kernels: Native, case: Case) -> None:
        self.kernels, self.library, self.hop = kernels, kernels.library, case.attributes["hop"]
        self.library.test_log_mel_tables.restype = c.c_void_p
        window, filters = (case.inputs[name].astype(np.float32) for name in ("window", "filters"))
        self.bands = filters.shape[1]
        self.tables = c.c_void_p(
            self.library.test_log_mel_tables(
                pointer(window), c.c_int64(len(window)), pointer(filters), c.c_int64(self.bands),
                c.c_int64(self.hop), c.c_int64(case.attributes["n_fft"]), c.c_float(case.attributes["eps"]),
            )
        )  # fmt: skip

    def __del__(self) -> None:
        self.library.test_log_mel_free(self.tables)

    def __call__(
        self,
        x: np.ndarray,
        past: np.ndarray,
        cuts: tuple[int, ...] = (),
        in_place: bool = False,
        shift: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """x [T], past [P] -> y [T / hop, M], next [P]; frames in parts that end at ``cuts``."""
        x, past = (np.array(value, np.float32, order="C") for value in (x, past))
        frames = len(x) // self.hop
        y = np.full((frames, self.bands), np.nan, np.float32)
        following = past if in_place else np.full_like(past, np.nan)
        kept = c.c_int64(len(past))
        edges = [0, *sorted(cut for cut in cuts if cut < frames), frames]
        for first, last in pairwise(edges):
            self.library.test_log_mel(
                self.kernels.table, self.tables, pointer(past), kept, pointer(x), pointer(y),
                c.c_int64(shift), Range(first, last),
            )  # fmt: skip
        self.library.test_keep_samples(pointer(past), kept, pointer(x), c.c_int64(len(x)), pointer(following))
        return y, following


@pytest.mark.parametrize("case", MEL, ids=case_name)
def test_log_mel_is_the_definition(native: Native, case: Case) -> None:
    mel = Mel(native, case)
    rows = [mel(x, past) for x, past in zip(case.inputs["x"], case.inputs["past"], strict=True)]
    wanted = reference.log_mel(*case.inputs.values(), **case.attributes)
    for found, value in zip(map(np.stack, zip(*rows, strict=True)), wanted, strict=True):
        assert tolerance.within(found, value), tolerance.error(found, value)


@settings(max_examples=60, deadline=None)
@given(
    points=st.sampled_from(POINTS),
    hops=st.integers(0, 9),
    cuts=st.lists(st.integers(0, 9), max_size=3),
    data=st.data(),
)
def test_however_it_is_called_the_bytes_are_the_same(
    native: Native,
    points: int,
    hops: int,
    cuts: list[int],
    data: st.DataObject,
) -> None:
    window = data.draw(st.integers(1, points), label="window")
    hop = data.draw(st.integers(1, window), label="hop")
    case = log_mel(hops, window, hop, points, B=1, M=data.draw(st.sampled_from((1, 5, 16, 21)), label="M"))
    mel, x, past = Mel(native, case), case.inputs["x"][0], case.inputs["past"][0]
    whole, final = mel(x, past)
    pieces, state = [], past
    for part in np.split(x, sorted(cut * hop for cut in cuts)):
        y, state = mel(part, state, in_place=True)
        pieces.append(y)
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    assert state.tobytes() == final.tobytes()
    again, _ = mel(x, past, cuts=tuple(cuts), shift=data.draw(st.integers(0, 16), label="shift"))
    assert again.tobytes() == whole.tobytes()


def test_a_loud_tone_leaves_the_quiet_bands_alone(native: Native) -> None:
    noise = np.random.default_rng(0).standard_normal(1600)
    x = np.sin(np.arange(1600) * 2 * np.pi * 500 / 8000) + 1e-3 * noise
    case = log_mel(0, 400, 160, 400, M=20)
    y, _ = Mel(native, case)(x, np.zeros(320))
    case.inputs["x"], case.inputs["past"] = x[None].astype(np.float32), np.zeros((1, 320))
    wanted, _ = reference.log_mel(*case.inputs.values(), **case.attributes)
    assert np.abs(y - wanted[0]).max() < 1e-4


def test_nan_stays_in_its_frames(native: Native) -> None:
    case = log_mel(6, 20, 8)
    mel, x = Mel(native, case), case.inputs["x"][0]
    clean, _ = mel(x, case.inputs["past"][0])
    x[20] = np.nan
    found, _ = mel(x, case.inputs["past"][0])
    seen = [f for f in range(6) if 8 * (f + 1) - 20 <= 20 < 8 * (f + 1)]
    assert np.isnan(found[seen]).any()
    others = [f for f in range(6) if f not in seen]
    assert found[others].tobytes() == clean[others].tobytes()


def test_silence_is_log_eps(native: Native) -> None:
    y, _ = Mel(native, log_mel(0, 20, 8))(np.zeros(16), np.zeros(16))
    assert np.array_equal(y, np.full_like(y, np.log(1e-6)))


def test_tables_of_impossible_size_are_refused(native: Native) -> None:
    case = log_mel(0, 1, 1, 16411, M=1)  # a prime
    assert Mel(native, case).tables.value is None


def test_logarithm_keeps_its_error_bound(native: Native) -> None:
    points = np.concatenate([np.geomspace(1.2e-38, 3.4e38, 400_000), np.linspace(0.4, 2.1, 400_000)])
    points = points.astype(np.float32)
    assert ulps(native.map("log", points), np.log(points.astype(np.float64))).max() <= 1.0
    edges = native.map("log", np.array([0.0, -0.0, 1e-40, 1.0, np.inf, -1.0, -np.inf, np.nan]))
    assert np.array_equal(edges[:5], np.array([-np.inf, -np.inf, -np.inf, 0.0, np.inf], np.float32))
    assert np.isnan(edges[5:]).all()
