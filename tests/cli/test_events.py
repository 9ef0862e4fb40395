import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm.errors import InputError, SnapshotError
from streamssm.events import ClassDetector, EventDetector
from streamssm.manifest import EventRule

RULE = EventRule("p", "speech", onset=0.5, offset=0.35, min_on=0.05, min_off=0.3)


def reference(p: np.ndarray, on: float, off: float, need_on: int, need_off: int) -> list[tuple[str, int]]:
    """The rule read literally: look ahead from each item for a whole run."""
    events, i, active = [], 0, False
    while i < len(p):
        run = p[i : i + (need_off if active else need_on)]
        whole = len(run) == (need_off if active else need_on)
        if whole and ((run < off).all() if active else (run >= on).all()):
            events.append(("end" if active else "start", i))
            active, i = not active, i + len(run)
        else:
            i += 1
    return [*events, ("end", len(p) - 1)] if active else events


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.34, 0.35, 0.49, 0.5, 0.9]), max_size=120),
    st.lists(st.integers(0, 120), max_size=20),
)
def test_any_split_gives_the_events_of_the_rule(values, cuts):
    rule = EventRule("p", "speech", min_on=0.03, min_off=0.05)
    p = np.array(values, np.float32)
    detector = EventDetector(rule, 100.0)
    found = []
    for index, part in enumerate(np.split(p, sorted(cuts))):
        found += detector.push(part)
        if index % 2:  # a snapshot in the middle changes nothing
            other = EventDetector(rule, 100.0)
            other.restore(detector.state())
            detector = other
    found += detector.flush()
    expected = reference(p, np.float32(0.5), np.float32(0.35), 3, 5)
    assert [(event["event"], event["index"]) for event in found] == expected
    assert all(event["time"] == event["index"] / 100 for event in found)


def test_events_have_label_time_index_and_say_when_cut():
    detector = EventDetector(RULE, 100.0)
    events = detector.push([0.0] * 10 + [0.9] * 30)
    assert events == [{"event": "start", "label": "speech", "time": 0.1, "index": 10}]
    assert detector.active
    assert detector.flush() == [{"event": "end", "label": "speech", "time": 0.39, "index": 39, "cut": True}]
    assert not detector.active
    assert detector.flush() == []


def test_times_are_decimal_and_do_not_drift():
    detector = EventDetector(EventRule("p", "x", min_on=0.0, min_off=0.0), 16000 / 3)
    detector.restore({"index": 10**12, "active": 0, "run": 0})
    (event,) = detector.push([1.0])
    assert event["index"] == 10**12
    assert event["time"] == pytest.approx(10**12 * 3 / 16000, abs=1e-6)


def test_without_a_clock_the_rule_counts_items():
    detector = EventDetector(EventRule("p", "gene", min_on=2, min_off=3), None)
    events = detector.push([0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1])
    assert events == [
        {"event": "start", "label": "gene", "index": 2},
        {"event": "end", "label": "gene", "index": 4},
    ]


def test_a_column_is_picked_and_nan_is_on_neither_side():
    detector = EventDetector(EventRule("p", "x", column=1, min_on=0.02, min_off=0.02), 100.0)
    p = np.zeros((6, 2), np.float32)
    p[:, 1] = [0.9, np.nan, 0.9, 0.9, np.nan, 0.9]
    assert [event["index"] for event in detector.push(p)] == [2]
    assert detector.active


def test_reset_starts_at_item_zero():
    detector = EventDetector(EventRule("p", "x", min_on=0.01), 100.0)
    first = detector.push([0.9])
    detector.reset()
    assert detector.push([0.9]) == first


@pytest.mark.parametrize("shape", [(), (3, 1), (2, 2, 2)])
def test_probabilities_without_the_column_are_refused(shape):
    detector = EventDetector(EventRule("p", "x", column=1), 100.0)
    with pytest.raises(InputError, match="shape"):
        detector.push(np.zeros(shape, np.float32))
    assert detector.state()["index"] == 0


@pytest.mark.parametrize(
    "state", [{}, {"index": -1, "active": 0, "run": 0}, {"index": "1", "active": 0, "run": 0}]
)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(SnapshotError):
        EventDetector(RULE, 100.0).restore(state)


CLASSES = EventRule("p", "move", onset=0.6, offset=0.4, min_on=0.03, min_off=0.05, every=True)
LABELS = ("row", "lift", "turn")


def certain(*runs: tuple[int, int]) -> np.ndarray:
    """(class, items) after one another, each quite sure; class -1 is nobody."""
    rows = [
        np.full(3, 0.1) if c < 0 else np.where(np.arange(3) == c, 0.8, 0.1) for c, n in runs for _ in range(n)
    ]
    return np.array(rows, np.float32).reshape(-1, 3)


def test_of_several_classes_one_event_is_open_at_a_time():
    detector = ClassDetector(CLASSES, LABELS, 100.0)
    events = detector.push(certain((-1, 4), (0, 10), (1, 10), (2, 2), (1, 3), (-1, 9), (2, 4)))
    assert [(e["event"], e["label"], e["index"]) for e in events + detector.flush()] == [
        ("start", "row", 4),
        ("end", "row", 14),
        ("start", "lift", 14),
        ("end", "lift", 29),
        ("start", "turn", 38),
        ("end", "turn", 41),
    ]
    assert not detector.active


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 9)), max_size=15),
    st.lists(st.integers(0, 90), max_size=10),
)
def test_any_split_gives_the_same_events_of_classes(runs, cuts):
    p = certain(*runs)
    whole = ClassDetector(CLASSES, LABELS, 100.0)
    expected = whole.push(p) + whole.flush()
    detector, found = ClassDetector(CLASSES, LABELS, 100.0), []
    for part in np.split(p, sorted(min(cut, len(p)) for cut in cuts)):
        found += detector.push(part)
        other = ClassDetector(CLASSES, LABELS, 100.0)
        other.restore(detector.state())
        detector = other
    assert found + detector.flush() == expected
    opened = [(e["event"], e["label"]) for e in expected]
    assert all(end == ("end", start[1]) for start, end in zip(opened[::2], opened[1::2], strict=True))
    indices = [e["index"] for e in expected]
    assert indices == sorted(indices)


def told(events: list[dict]) -> list[tuple[str, str, int]]:
    return [(e["event"], e["label"], e["index"]) for e in events]


def test_a_class_that_was_sure_before_the_end_starts_at_the_end():
    """0.6 is sure, 0.4 does not speak for an end, in float32; NaN is neither."""
    detector = ClassDetector(CLASSES, LABELS, 100.0)
    assert told(detector.push([[0.6, 0, 0]] * 3 + [[0.4, 0.7, 0.6]] * 9)) == [("start", "row", 0)]
    nan = float("nan")
    assert detector.push([[0.39, 0.7, 0.6]] * 4 + [[nan, 0.7, 0.6]] + [[0.39, 0.6, 0.7]] * 4) == []
    found = told(detector.push([[0.39, 0.6, 0.7]]))
    assert found == [("end", "row", 17), ("start", "turn", 17)]  # the likeliest now; it was sure since 3


def test_what_is_missing_counts_for_no_class():
    detector = ClassDetector(CLASSES, LABELS, 100.0)
    detector.push(certain((0, 2)))
    detector.pass_over(10)
    assert told(detector.push(certain((0, 3), (1, 4)))) == [("start", "row", 12)]
    detector.pass_over(10)
    assert told(detector.push(certain((1, 5)))) == [("end", "row", 29), ("start", "lift", 29)]
    assert told(detector.flush()) == [("end", "lift", 33)]
    assert detector.push(certain((2, 2))) == detector.flush() == []
    detector.reset()
    assert detector.state() == ClassDetector(CLASSES, LABELS, 100.0).state()


def test_detectors_of_classes_refuse_what_is_not_theirs():
    detector = ClassDetector(CLASSES, LABELS, 100.0)
    with pytest.raises(InputError, match=r"shape \(4, 2\); pass \[F, 3\]"):
        detector.push(np.zeros((4, 2)))
    detector.push(certain((0, 4), (-1, 2)))
    good = detector.state()
    bad = [{"runs": [0, 0]}, {"runs": "000"}, {"runs": [0, 0, 7]}, {"runs": None}, {"open": 3}, {"open": -2}]
    bad += [{"index": value} for value in ("6", 6.0, True, float("inf"), None, -1)]
    bad += [{"free": 7}, {"ending": 7}, {"ending": -1}]
    for state in ({}, {"index": 1, "active": 0, "run": 0}, *(good | change for change in bad)):
        with pytest.raises(SnapshotError, match="detector of classes"):
            detector.restore(state)
    assert detector.state() == good
