import contextlib
import gzip
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from source_tools import IDS, MONO, ROWS, everything, give_stdin, notes_of, pieces

from streamssm.errors import SourceError, UsageError
from streamssm.manifest import Input
from streamssm.sources import Request, open_source
from streamssm.sources.base import Gap
from streamssm.sources.bytestream import LINE, ByteStream
from streamssm.sources.tail import Follower
from streamssm.sources.timeline import Timeline, moment_of
from streamssm.waiting import Interrupted, Stop

PLAIN = Input("x", "features", "float32", (3,))
TABLE = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]


def with_gaps(uri, wanted: Input = ROWS, size: int = 100, **options) -> list:
    """Rows and gaps in the order in which they come."""
    found = []
    with open_source(str(uri), Request(wanted, **options)) as source:
        for items, gaps in pieces(source, size):
            found += [(gap.reason, gap.items) for gap in gaps]
            found += items.tolist()
    return found


def write(path, text: str):
    path.write_text(text)
    return path


# JSON lines


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]\n[4, 5, 6]\n[7, 8, 9]\n",
        '{"x": [1, 2, 3]}\n\n{"x": [4, 5, 6]}\n{"x": [[7, 8, 9]]}',
        '{"a": 1, "b": 2, "c": 3}\n{"c": 6, "a": 4, "b": 5, "d": "more"}\n{"b": 8, "a": 7, "c": 9}\n',
        "\ufeff[[1, 2, 3], [4, 5, 6]]\r\n[7, 8, 9]\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_json_lines(tmp_path, text, size, monkeypatch):
    assert everything(write(tmp_path / "x.jsonl", text), ROWS, size).tolist() == TABLE
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert everything(tmp_path / "x.jsonl.gz", ROWS, size).tolist() == TABLE
    give_stdin(monkeypatch, text.encode())
    assert everything("-", ROWS, size, format="auto" if text[0] in "{[" else "jsonl").tolist() == TABLE


def test_columns_are_taken_by_name(tmp_path):
    table = write(tmp_path / "x.csv", 'note,c,a,"b"\n"one, two",3,1,2\nplain,6,4,5\n')
    lines = write(
        tmp_path / "x.jsonl",
        '{"a": 1, "c": 3, "b": 2, "note": "one, two"}\n{"b": 5, "note": null, "c": 6, "a": 4}\n',
    )
    for path in (table, lines):
        assert everything(path, ROWS, names=("a", "b", "c")).tolist() == TABLE[:2]
        assert everything(path, Input("x", "features", "float32", (), rate=50.0), names=("b",)).tolist() == [
            2,
            5,
        ]
    ids = write(tmp_path / "ids.jsonl", "1\n[2]\n3\n")
    assert everything(ids, IDS).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        (
            "x.csv",
            "a,b\n1,2\n",
            {"names": ("a", "q")},
            "no column 'q' in the first line, 'a,b'; name columns",
        ),
        ("x.csv", "1,2\n3,4\n", {"names": ("a",)}, "no column 'a' in the first line"),
        ("x.csv", "a,b,c\n1,2\n", {"names": ("a", "b", "c")}, "line 2: it has 2 columns, the header 3"),
        ("x.csv", "a,b,c\n1,,3\n", {"names": ("a", "b", "c")}, "line 2: '' is not a number.*--on-bad skip"),
        ("x.csv", "1,2,3\n" + "4" * (LINE + 9), {}, "line 2: it is longer than 1 MiB; is this text"),
        ("x.csv", "\0\1\2\n\0\n", {}, "line 1: it holds zero bytes"),
        ("x.csv", "1,2,3\n", {"channels": 2}, "has 3 columns, --channels says 2"),
        ("x.jsonl", "", {}, "is empty"),
        ("x.jsonl", "\n\n", {}, "holds no rows"),
        ("x.jsonl", '{"a": 1, "b": 2}\n', {"names": ("a", "b", "c")}, "line 1: .*column 'c' is missing"),
        ("x.jsonl", "[1, 2, 3]\n[1, 2\n", {}, "line 2: .* is not JSON"),
        ("x.jsonl", "[1, 2, true]\n", {}, "line 1: "),
        ("x.jsonl", '[1, 2, "3"]\n', {}, "line 1: "),
        ("x.jsonl", "[1, 2, null]\n", {}, "line 1: "),
        ("x.jsonl", "[1, 2]\n", {}, "line 1: .*3 columns"),
        ("x.jsonl", "[" * 5000 + "]" * 5000, {}, "line 1: "),
        ("x.jsonl", "[1e999, 2, 3]\n", {}, "line 1: "),
        ("x.jsonl", "[1,2,3]\n", {"channel": 1}, "with --columns"),
        ("x.npy", "", {"names": ("a",)}, "--columns names columns of a table or of JSON, and npy has none"),
        ("x.csv", "1,2,3\n", {"time_column": "t"}, "no column 't'"),
    ],
)
def test_what_is_refused(tmp_path, name, text, options, message):
    with pytest.raises((SourceError, UsageError), match=message):
        everything(write(tmp_path / name, text), ROWS, **options)


def test_rows_before_a_bad_one_are_given_first(tmp_path):
    path = write(tmp_path / "x.csv", "1,2,3\n4,5,6\nx,y,z\n7,8,9\n")
    with open_source(str(path), Request(ROWS)) as source:
        assert source.read(100).tolist() == TABLE[:2]
        with pytest.raises(SourceError, match="line 3: 'x' is not a number"):
            source.read(100)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_bad_rows_are_left_out_as_gaps(tmp_path, size):
    options = {"on_bad": "skip", "size": size}
    text = "BOOT ok\n2,3\n1,2,3\n4,nan,6\n4,5\n4,5,6\n\0\xff,,\n" + "4" * (LINE + 5) + "\n7,8,9\n1e99,1,1\n"
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("latin-1"))
    found = with_gaps(path, **options)
    one, two, three = TABLE
    assert found == [("invalid", 1), one, ("invalid", 2), two, ("invalid", 2), three, ("invalid", 1)]
    assert "line 2: " in notes_of(path, ROWS, on_bad="skip")
    lines = '[1, 2, 3]\n{"x": [1, 2]}\ngarbage\n[4, 5, 6]\n[7, 8, 9]\n[1, 2,'
    found = with_gaps(write(tmp_path / "x.jsonl", lines), **options)
    assert found == [one, ("invalid", 2), two, three, ("invalid", 1)]


@given(data=st.binary(max_size=300), size=st.integers(1, 5), kind=st.sampled_from(["csv", "jsonl"]))
@example(data=b'\x00\r"', size=1, kind="csv")
@example(data=b'1,2,"\r3\n', size=1, kind="csv")
@settings(max_examples=150, deadline=None)
def test_garbage_is_refused_or_left_out_but_never_breaks(tmp_path_factory, data, size, kind):
    path = tmp_path_factory.getbasetemp() / f"garbage.{kind}"
    path.write_bytes(b"1,2,3\n" + data if kind == "csv" else b"[1,2,3]\n" + data)
    assert len(everything(path, ROWS, size, on_bad="skip"))
    with contextlib.suppress(SourceError, UsageError):
        everything(path, ROWS, size)


def test_a_line_without_an_end_does_not_fill_the_memory():
    class Endless:
        given_out = 0

        def read1(self, size: int) -> bytes:
            self.given_out += size
            return b"x" * size if self.given_out < 200 << 20 else b""

    stream = ByteStream(Endless())
    assert len(stream.read_lines(1)[0]) == LINE + 1
    assert stream.read_lines(1) == []


@given(
    text=st.lists(st.sampled_from([b"a", b"bb", b"\n", b"ccccccc"]), max_size=60).map(b"".join),
    cut=st.integers(1, 9),
    most=st.integers(1, 4),
)
def test_lines_do_not_depend_on_how_bytes_come(text, cut, most):
    class Drip:
        def __init__(self):
            self.left = text

        def read1(self, size: int) -> bytes:
            data, self.left = self.left[:cut], self.left[cut:]
            return data

    stream, lines = ByteStream(Drip()), []
    while found := stream.read_lines(most, longest=5):
        lines += found
    assert lines == [line[:6] for line in text.split(b"\n")[: None if text[-1:] not in (b"", b"\n") else -1]]


# times


def test_a_time_column_shows_what_is_missing(tmp_path):
    rows = [f"{n / 50:.3f},{n},0,1" for n in (0, 1, 2, 5, 6, 7, 106, 107)]
    path = write(tmp_path / "x.csv", "\n".join(["t,a,b,c", *rows]))
    found = with_gaps(path, time_column="t")
    gaps = [place for place in found if isinstance(place, tuple)]
    assert gaps == [("missing", 2), ("missing", 98)]
    assert [row[0] for row in found if isinstance(row, list)] == [0, 1, 2, 5, 6, 7, 106, 107]
    assert found[3] == gaps[0]
    lines = [json.dumps({"x": [n, 0, 1], "at": n / 50}) for n in (0, 1, 2, 5, 6, 7, 106, 107)]
    again = with_gaps(write(tmp_path / "x.jsonl", "\n".join(lines)), time_column="at")
    assert again == found


def test_dates_are_times(tmp_path):
    start = datetime(2026, 3, 29, 0, 59, 59, 900_000, UTC)  # the clocks of Europe change 100 ms later
    times = [(start + timedelta(milliseconds=20 * n)).isoformat() for n in range(12) if n not in (7, 8)]
    path = write(tmp_path / "x.csv", "\n".join(["when,a,b,c", *(f"{time},1,2,3" for time in times)]))
    assert [place for place in with_gaps(path, time_column="when") if isinstance(place, tuple)] == [
        ("missing", 2)
    ]
    assert moment_of("1970-01-01T00:00:01Z") == moment_of("1970-01-01 00:00:01") == moment_of("1") == 1.0
    for bad in ("yesterday", "nan", "inf", ""):
        with pytest.raises(ValueError, match=r"Invalid isoformat|is not a moment"):
            moment_of(bad)


@given(
    gaps=st.lists(st.tuples(st.integers(20, 60), st.integers(1, 500)), max_size=8),
    slow=st.floats(-0.01, 0.01),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_clock_that_jitters_and_runs_a_little_wrong_shows_every_gap_and_no_other(gaps, slow, seed):
    rng = np.random.default_rng(seed)
    line, number, found, expected = Timeline(50.0, "t"), 0, [], []
    for run, gap in [(40, 0), *gaps]:
        number += gap
        for place in range(run):
            away = line.missing((number + rng.uniform(-0.05, 0.05)) / 50 * (1 + slow))
            if away:
                found.append((number, away))
            if gap and place == 0:
                expected.append((number, gap))
            number += 1
    assert [place for place, _ in found] == [place for place, _ in expected]
    # a clock that runs 1 % wrong says so of the gap as well
    assert all(abs(a - b) <= 0.5 + 0.015 * b for (_, a), (_, b) in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 0.02, 0.01], "line 4: t runs backwards, from 0.020000 to 0.010000; sort the rows"),
        (np.arange(30) / 100, "rows come 100 times a second by t, the model takes 50; resample"),
        (np.arange(60) // 50, "t is coarser than the rows"),
        (np.arange(60) * 20, "t seems to count milliseconds"),
        (np.arange(60) * 20e6, "t seems to count nanoseconds"),
        ([0, "soon"], "line 3: 'soon' is no time"),
    ],
)
def test_times_that_cannot_be(tmp_path, times, message):
    rows = "\n".join(f"{time},1,2,3" for time in times)
    with pytest.raises(SourceError, match=message):
        everything(write(tmp_path / "x.csv", f"t,a,b,c\n{rows}\n"), ROWS, time_column="t")


def test_a_model_without_a_rate_has_no_times(tmp_path):
    with pytest.raises(UsageError, match="--time-column t: the model has no rate"):
        everything(write(tmp_path / "x.csv", "t,a,b,c\n0,1,2,3\n"), PLAIN, time_column="t")


def test_garbage_between_the_rows_of_a_whole_table_stands_for_no_item(tmp_path):
    text = "t,a,b,c\n0,1,2,3\n# fine\nWARNING low battery\n0.02,4,5,6\nx\n0.1,7,8,9\n"
    found = with_gaps(write(tmp_path / "x.csv", text), time_column="t", on_bad="skip")
    one, two, three = TABLE
    assert found == [one, ("invalid", 0), two, ("invalid", 1), ("missing", 2), three]


# tail


class Script:
    """Steps that a test's file goes through while the reader waits for more; then a stop."""

    def __init__(self, *steps):
        self.steps, self.stop = list(steps), Stop()

    def __call__(self, seconds: float) -> None:
        if not self.steps:
            raise Interrupted
        self.steps.pop(0)()


def follow(monkeypatch, path, script: Script, wanted: Input = ROWS, **options) -> list:
    monkeypatch.setattr(Follower.__init__, "__defaults__", (script,))
    found = []
    with open_source(f"tail:{path}", Request(wanted, **options)) as source:
        assert not source.replayable
        try:
            for number in count():
                assert number < 50
                found += source.read(100).tolist()
        except Interrupted:
            return found


def append(path, text: str):
    def step() -> None:
        with path.open("a") as file:
            file.write(text)

    return step


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tail_follows_a_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"log.{suffix}"
    first, second, third = ("1,2,3\n", "4,5,", "6\n7,8,9\n")
    if suffix == "jsonl":
        first, second, third = ("[1,2,3]\n", "[4,5,", "6]\n[7,8,9]\n")
    path.write_text(first)
    script = Script(append(path, second), lambda: None, append(path, third))
    assert follow(monkeypatch, path, script) == TABLE


def test_tail_goes_with_rotation_and_truncation(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text("a,b,c\n1,2,3\n")

    def rotate() -> None:
        append(path, "4,5,6\n7,8")()  # written last to the old file, and a line that never ends
        path.rename(tmp_path / "log.csv.1")

    def truncate() -> None:
        path.write_text("9,9,9\n")

    script = Script(
        rotate, lambda: path.write_text("a,b,c\n1,1,1\n2,2,2\n"), truncate, append(path, "8,8,8\n")
    )
    found = follow(monkeypatch, path, script, on_bad="skip")
    assert found == [*TABLE[:2], [1, 1, 1], [2, 2, 2], [9, 9, 9], [8, 8, 8]]


def test_tail_of_text_and_samples(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "ab")
    letters = Input("ids", "tokens", "int64", (), vocabulary=256)
    assert follow(monkeypatch, path, Script(append(path, "c")), letters) == [97, 98, 99]
    path = tmp_path / "a.raw"
    path.write_bytes(np.array([1, 2], "<i2").tobytes())
    found = follow(monkeypatch, path, Script(), MONO, format="s16le")
    assert found == [2**-15, 2**-14]


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("missing.csv", ROWS, "does not exist"),
        (".", ROWS, "is a folder"),
        ("a.wav", MONO, "needs --input-format s16le"),
        ("a.npy", ROWS, "cannot follow npy"),
        ("fifo", ROWS, "no regular file; name it without tail:"),
    ],
)
def test_what_cannot_be_followed(tmp_path, name, wanted, message):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "a.npy").write_bytes(b"x")
    options = {"format": "npy"} if name == "a.npy" else {}
    with pytest.raises((SourceError, UsageError), match=message):
        open_source(f"tail:{tmp_path / name}", Request(wanted, **options))


def test_a_stop_leaves_tail_while_it_waits(tmp_path):
    path = write(tmp_path / "x.csv", "1,2,3\n")
    stop = Stop()
    with open_source(f"tail:{path}", Request(ROWS)) as source, stop.leaving():
        assert source.read(10).tolist() == TABLE[:1]
        threading.Timer(0.1, stop.request).start()
        with pytest.raises(Interrupted):
            source.read(10)


# skipping, pacing


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "csv.gz"])
def test_skipping_rows_is_reading_them(tmp_path, suffix):
    text = "".join(f"{n / 50},{n},0,0\n" for n in range(40) if n % 7)
    text = "t,a,b,c\n" + text
    if suffix == "jsonl":
        text = "".join(json.dumps({"t": n / 50, "x": [n, 0, 0]}) + "\n" for n in range(40) if n % 7)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode())
    whole = []
    for skipped in range(34):
        with open_source(str(path), Request(ROWS, time_column="t")) as source:
            assert source.replayable
            source.skip(skipped)
            rest = [(items.tolist(), gaps) for items, gaps in pieces(source, 1)]
        whole = whole or rest
        assert rest == whole[skipped:]


def test_sim_takes_the_time_of_gaps(tmp_path):
    path = write(tmp_path / "x.csv", "t,a,b,c\n0,1,2,3\n0.02,4,5,6\n1.00,7,8,9\n")
    with open_source(f"sim:{path}", Request(ROWS, time_column="t")) as source:
        source.skip(1)
        source._sleep = lambda seconds: None
        source.read(1)
        first = source.due
        source.read(1)
        assert source.gaps == (Gap("missing", 48),) or list(source.gaps) == [Gap("missing", 48)]
        assert source.due - first == pytest.approx(49 / 50)


def test_gz_that_is_damaged_gives_what_comes_before(tmp_path):
    data = gzip.compress(b"1,2,3\n" * 50_000, mtime=0)
    path = tmp_path / "x.csv.gz"
    for cut, message in [
        (data[: len(data) // 2], "truncated: it ends inside compressed"),
        (data[:-9] + b"x" * 9, "damaged"),
    ]:
        path.write_bytes(cut)
        with open_source(str(path), Request(ROWS)) as source:
            found = []
            with pytest.raises(SourceError, match=message):
                found.extend(items for items, _ in pieces(source, 1000))
            assert sum(map(len, found)) > 10_000
    path.write_bytes(gzip.compress(b"1,2,3\n") + gzip.compress(b"") + gzip.compress(b"4,5,6\n") + b"\0" * 512)
    assert everything(path, ROWS).tolist() == TABLE[:2]
