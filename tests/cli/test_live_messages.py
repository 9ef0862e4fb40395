"""What a message says, and what is missing between two."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm.errors import SourceError
from streamssm.live.messages import MessageReader, Place
from streamssm.live.order import Order
from streamssm.live.pace import Pace
from streamssm.manifest import Input
from streamssm.sources.base import Gap, Request

ROWS = Input("imu", "features", "float32", (3,), rate=50.0)
IDS = Input("ids", "tokens", "int64", (), vocabulary=5)
MONO = Input("audio", "samples", "float32", (), rate=8000.0)


def reader(wanted: Input = ROWS, **options) -> MessageReader:
    request = Request(wanted, **options)
    return MessageReader("m", request, request.columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 3]", [[1, 2, 3]]),
        ("[[1, 2, 3], [4, 5, 6]]", [[1, 2, 3], [4, 5, 6]]),
        ('{"x": [1, 2, 3]}', [[1, 2, 3]]),
        ('{"imu": [[1, 2, 3]], "seq": 7}', [[1, 2, 3]]),
        ('{"a": 1, "b": 2.5, "c": 3, "time": 0}', [[1, 2.5, 3]]),
        ('[{"a": 1, "b": 2, "c": 3}, {"c": 6, "b": 5, "a": 4}]', [[1, 2, 3], [4, 5, 6]]),
        ("[]", []),
    ],
)
def test_frames_of_json(text, expected):
    message = reader().read_json(text)
    assert message.frames.tolist() == expected
    assert message.frames.dtype == np.float32
    assert message.place.frames == len(expected)


def test_numbers_are_frames_of_one_channel():
    assert reader(MONO).read_json("[0.5, -1]").frames.tolist() == [[0.5], [-1]]
    assert reader(MONO).read_json("0.25").frames.tolist() == [[0.25]]
    assert reader(IDS).read_json("[4, 0]").frames.dtype == np.int64


def test_the_first_object_settles_the_columns_unless_they_are_named():
    found = reader()
    assert found.read_json('{"t": "x", "b": 1}').frames is None
    assert found.read_json('{"b": 1, "a": 2, "c": "x"}').frames is None
    assert found.columns == ()
    assert found.read_json('{"b": 1, "a": 2, "c": 3}').frames.tolist() == [[1, 2, 3]]
    assert found.columns == ("b", "a", "c")
    assert found.read_json('{"c": 3, "a": 2, "more": null, "b": 1}').frames.tolist() == [[1, 2, 3]]
    named = reader(names=("c", "x", "a"))
    assert named.read_json('{"a": 1, "b": 2, "c": 3, "x": 4}').frames.tolist() == [[3, 4, 1]]


@pytest.mark.parametrize(
    ("data", "fault", "frames"),
    [
        ('{"a": 1, "c": 3}', "column 'b' is missing", 1),
        ('[{"a": 1, "b": 2, "c": 3}, {"a": 1}]', "column 'b' is missing", 2),
        ("[1, 2]", "frames have 3 columns, not 2", 1),
        ('[1, "2", 3]', "Expected `float`, got `str`", 1),
        ("[1, true, 3]", "got `bool`", 1),
        ("[1, null, 3]", "got `null`", 1),
        ("[1e60, 2, 3]", "NaN, infinite or beyond float32", 1),
        ('{"status": "on"}', "column 'a' is missing", None),
        ('"hello"', "got `str`", None),
        ("null", "got `null`", None),
        ("[[[1, 2, 3]]]", "got `array`", None),
        ("[1, 2, 3", "is not JSON", None),
        (b"\xff\xfe\x00\x01", "is not JSON", None),
        ("[" * 100_000, "is not JSON", None),
        ('{"a": 1, "b": 2, "c": 3, "seq": 1.5}', '"seq" is .*, not a whole number', None),
        ('{"a": 1, "b": 2, "c": 3, "time": "noon"}', "no number and no ISO date", None),
    ],
)
def test_bad_messages(data, fault, frames):
    message = reader(names=("a", "b", "c")).read_json(data)
    assert message.frames is None
    assert message.place.frames == frames
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(message.fault)
    assert len(message.fault) < 250


def test_tokens_are_in_the_vocabulary():
    assert "not in 0 to 4" in reader(IDS).read_json("[4, 5]").fault
    assert "not in 0 to 4" in reader(IDS).read_json("-1").fault
    assert reader(IDS).read_json("99999999999999999999999").frames is None
    assert "cannot feed a model of tokens" in reader(IDS).read_binary(b"1234", "f32le").fault


def test_binary():
    x = np.arange(6, dtype="<i2").reshape(2, 3)
    message = reader().read_binary(x.tobytes(), "s16le")
    np.testing.assert_array_equal(message.frames, x / np.float32(32768))
    bad = reader().read_binary(bytes(13), "f32le")
    assert (bad.frames, bad.fault) == (None, "13 bytes are not whole frames of 12 bytes (f32le)")
    assert "NaN" in reader().read_binary(b"\xff" * 12, "f32le").fault
    with pytest.raises(SourceError, match="cannot carry csv; messages are json, f32le"):
        reader(format="csv")


@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_message_breaks_out(data):
    found = reader()
    assert (found.read_json(data).frames is None) != (found.read_json(data).fault == "")
    if isinstance(data, bytes):
        found.read_binary(data, "f32le")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["x", "imu", "seq", "time", "a", "b", "c"]), inner, max_size=5)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=300, deadline=None)
def test_no_json_breaks_out(value):
    message = reader().read_json(json.dumps(value))
    assert message.frames is None or message.frames.shape[1:] == (3,)


def gaps(order: Order, *places: Place) -> list[list[Gap] | None]:
    found = (order.accept(place) for place in places)
    return [None if one is None else list(one) for one in found]


def test_numbers_tell_what_is_missing():
    order = Order(None)
    numbers = [3, 4, 7, 7, 8, 2, 3]
    found = gaps(order, *(Place(number, None, 5) for number in numbers))
    assert found == [[], [], [Gap("missing", 10)], None, [], [Gap("missing")], []]
    # messages of different sizes: how much is missing is unknown
    assert gaps(order, Place(9, None, 2)) == [[Gap("missing")]]
    # a second delivery after the connection was away
    assert order.accept(Place(8, None, 2), again=True) is None


def test_a_clock_that_is_set_is_no_gap_of_years():
    order = Order(Fraction(50))
    found = gaps(order, Place(None, 12.0, 1), Place(None, 1.7e9, 1), Place(None, 1.7e9 + 0.06, 1))
    assert found == [[], [Gap("missing")], [Gap("missing", 2, 0.04)]]
    assert gaps(Order(None), Place(1, None, 1), Place(1 << 62, None, 1)) == [[], [Gap("missing")]]


def test_a_bad_message_counts_once():
    order = Order(Fraction(50))
    # read as one row without a number; what could not be read at all is told by the next number
    assert gaps(order, Place(1, 0.0, 1), Place(None, None, 1), Place(3, 0.04, 1)) == [[], [], []]
    assert gaps(order, Place(), Place(5, 0.08, 1)) == [[], [Gap("missing", 1)]]


def moments(order: Order, *seconds: float, frames: int = 1) -> list[int | None]:
    found = gaps(order, *(Place(None, moment, frames) for moment in seconds))
    return [sum(gap.items or 0 for gap in one) for one in found]


def test_moments_tell_what_is_missing():
    assert moments(Order(Fraction(50)), 1.0, 1.02, 1.04, 1.12, 1.14) == [0, 0, 0, 3, 0]
    assert moments(Order(Fraction(50)), 0.0, 0.2, 0.6, frames=10) == [0, 0, 10]
    assert gaps(Order(Fraction(50)), Place(None, 5.0, 1), Place(None, 1.0, 1)) == [[], [Gap("missing")]]
    assert gaps(Order(None), Place(None, 1.0, 1), Place(None, 9.0, 1)) == [[], []]


@pytest.mark.parametrize("skew", [0.99, 1.0, 1.02])
def test_jitter_and_a_wrong_clock_are_no_gaps(skew):
    rng = np.random.default_rng(0)
    times = np.arange(2000) / 50 * skew + rng.uniform(-0.1, 0.1, 2000) / 50
    kept = np.ones(2000, bool)
    kept[500:507] = kept[1200] = False
    found = moments(Order(Fraction(50)), *np.maximum.accumulate(times[kept]))
    assert [count for count in found if count] == [7, 1]


def test_both_count_once():
    order = Order(Fraction(50))
    places = [Place(number, number / 50, 1) for number in (1, 2, 6, 7)]
    assert gaps(order, *places) == [[], [], [Gap("missing", 3)], []]


def test_the_pace_of_a_sender():
    def judged(rate: float, step: float, count: int = 2000) -> list[str]:
        pace = Pace(rate)
        found = (pace.judge(1, number * step, False) for number in range(count))
        return [one for one in found if one]

    assert judged(50, 0.02) == []
    assert judged(50, 0.021) == []
    (told,) = judged(50, 0.01)
    assert told.startswith("100 items come in a second, not 50")
    assert judged(50, 3.0) == []  # a sender that pauses
    pace = Pace(50.0)
    assert not any(pace.judge(1, number * 0.1, number == 5) for number in range(1000))
