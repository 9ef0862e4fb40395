"""Every format says the same events and the same times as JSON lines, however rows fall into calls."""

import io
import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_tools import (
    VOICE,
    Span,
    make,
    read_csv,
    read_jsonl,
    read_labels,
    read_parquet,
    read_rttm,
    read_srt,
    read_vtt,
    spans,
    write,
)

from streamssm import clock
from streamssm.errors import OutputError, SnapshotError, UsageError
from streamssm.manifest import Input, Manifest, Output
from streamssm.rows import EventRows, make_rows
from streamssm.sinks import FORMATS, make_format

RATES = [Fraction(100), Fraction(44100, 512), Fraction(3, 7)]
EVENT_FORMATS = ["csv", "rttm", "vtt", "srt", "txt", "parquet", "jsonl"]
REASONS = ["dropped", "device", "missing", "disconnected", "invalid"]


@st.composite
def event_rows(draw):
    """What the loop hands over: events with gaps among them, of one sequence or of several records."""
    rate = draw(st.sampled_from(RATES))
    rows = []
    names = ["a.wav", "b b.wav"] if draw(st.booleans()) else [None]
    for name in names:
        index = 0
        first = {} if name is None else {"record": name}
        for kind in ["start", "end"] * draw(st.integers(0, 4)):
            index += draw(st.integers(1, 10**6))
            row = {"event": kind, "label": "speech", "time": clock.seconds(index, rate), "index": index}
            if draw(st.integers(0, 4)) == 0:
                rows.append(first | draw(gap_rows()) | {"time": row["time"]})
            rows.append(first | row)
        if rows and rows[-1].get("event") == "end" and draw(st.booleans()):
            rows[-1] = rows[-1] | {"cut": True}
    return rows


@st.composite
def gap_rows(draw):
    items = draw(st.none() | st.integers(0, 10**9))
    seconds = draw(st.none() | st.floats(0, 1e6).map(lambda value: round(value, 6)))
    return {"gap": draw(st.sampled_from(REASONS)), "items": items, "seconds": seconds}


def cut(data, rows):
    """Some way to deal rows out to calls."""
    places = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    return [rows[a:b] for a, b in zip([0, *places], [*places, len(rows)], strict=True)]


def split_by_state(name, pieces, **options):
    """Each piece by a fresh sink that continues the file from the state of the one before, as text."""
    sink = make(name, **options)
    data = sink.begin()
    for piece in pieces:
        fresh = make(name, **options)
        fresh.restore(json.loads(json.dumps(sink.state())))
        data, sink = data + fresh.rows(piece), fresh
    file = io.BytesIO(data + sink.end())
    sink.finish(file)
    return file.getvalue()


def milliseconds(found):
    return [s._replace(start=(s.start + 500) // 1000 * 1000, end=(s.end + 500) // 1000 * 1000) for s in found]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_format_tells_the_same_events_and_the_same_times(data):
    rows = data.draw(event_rows())
    written = {name: write(make(name), cut(data, rows)) for name in EVENT_FORMATS}
    assert read_jsonl(written["jsonl"]) == rows
    there = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert read_csv(written["csv"]) == there
    assert read_parquet(written["parquet"]) == there
    expected = spans(rows)
    assert read_labels(written["txt"]) == expected
    assert read_srt(written["srt"]) == milliseconds(expected)
    cues, notes = read_vtt(written["vtt"])
    assert cues == milliseconds(expected)
    lines, comments = read_rttm(written["rttm"])
    named = [s._replace(record={None: "talk", "a.wav": "a", "b b.wav": "b_b"}[s.record]) for s in expected]
    assert lines == named
    gaps = [row for row in rows if "gap" in row]
    assert notes == comments
    assert len(notes) == len(gaps)
    for row, note in zip(gaps, notes, strict=True):
        assert note.startswith(f"gap: {row['gap']}")
        assert note.endswith(f" at {row['time']:g} s")
        assert (f" {row['items']} items" in note) == (row["items"] is not None)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(EVENT_FORMATS))
def test_bytes_depend_on_the_rows_alone_also_across_saved_states(data, name):
    rows = data.draw(event_rows())
    whole = write(make(name), [rows])
    assert write(make(name), cut(data, rows)) == whole
    assert write(make(name), [[row] for row in rows]) == whole
    if make(name).appendable:
        assert split_by_state(name, cut(data, rows)) == whole


@pytest.mark.parametrize("name", ["rttm", "vtt", "srt", "txt"])
def test_an_open_event_waits_for_its_end_and_survives_in_the_state(name):
    start, end = [
        {"event": kind, "label": "speech", "time": time, "index": 0}
        for kind, time in (("start", 0.5), ("end", 1.25))
    ]
    first = make(name)
    assert first.rows([start]) == b""
    assert first.end() == b""
    second = make(name)
    second.restore(first.state())
    data = second.begin() + second.rows([end])  # another file, with a beginning of its own
    assert data == write(make(name), [[start, end]])
    fresh = make(name)
    with pytest.raises(SnapshotError, match="where it began"):
        fresh.rows([end])


def test_exact_bytes():
    rows = [
        {"event": "start", "label": "a<b & c", "time": 3599.9996, "index": 0},
        {"gap": "dropped", "items": 160, "seconds": 0.01, "time": 3600.0},
        {"event": "end", "label": "a<b & c", "time": 3723.25, "index": 9, "cut": True},
    ]
    gap = "gap: dropped 160 items 0.01 s at 3600 s"
    expected = {
        "vtt": f"WEBVTT\n\nNOTE {gap}\n\n01:00:00.000 --> 01:02:03.250\na&lt;b &amp; c\n\n",
        "srt": "1\n01:00:00,000 --> 01:02:03,250\na<b & c\n\n",
        "rttm": f";; {gap}\nSPEAKER talk 1 3599.999600 123.250400 <NA> <NA> a<b_&_c <NA> <NA>\n",
        "txt": "3599.999600\t3723.250\ta<b & c\n",
        "csv": "event,label,time,index,cut,gap,items,seconds\n"
        "start,a<b & c,3599.9996,0,,,,\n,,3600.0,,,dropped,160,0.01\nend,a<b & c,3723.25,9,true,,,\n",
    }
    for name, text in expected.items():
        assert write(make(name), [rows]).decode() == text, name


@pytest.mark.parametrize("name", ["vtt", "srt", "rttm", "txt", "csv"])
@given(label=st.text(min_size=1), record=st.text(min_size=1))
@settings(max_examples=30, deadline=None)
def test_names_cannot_break_a_format(name, label, record):
    rows = [
        {"record": record, "event": kind, "label": label, "time": time, "index": 0}
        for kind, time in (("start", 1.0), ("end", 2.0), ("start", 3.0), ("end", 4.0))
    ]
    data = write(make(name), [rows])
    if name == "csv":
        plain = [{key: value for key, value in row.items() if value != ""} for row in rows]
        assert [row.get("label") for row in read_csv(data)] == [row.get("label") for row in plain]
        return
    if name in ("vtt", "srt"):
        found = read_vtt(data)[0] if name == "vtt" else read_srt(data)
    else:
        found = read_rttm(data)[0] if name == "rttm" else read_labels(data)
    assert [(span.start, span.end) for span in found] == [(10**6, 2 * 10**6), (3 * 10**6, 4 * 10**6)]


@pytest.mark.parametrize("suffix", ["vtt", "srt"])
def test_a_player_reads_the_captions(tmp_path, suffix):
    av = pytest.importorskip("av")
    rows = [
        {"event": kind, "label": "speech", "time": time, "index": 0}
        for kind, time in (("start", 0.53), ("end", 1.54), ("start", 2.35), ("end", 5.831))
    ]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(write(make(suffix), [rows]))
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux() if packet.size]
        found = [
            (packet.pts * packet.time_base, packet.duration * packet.time_base, bytes(packet))
            for packet in packets
        ]
    assert [(float(start), float(length)) for start, length, _ in found] == [(0.53, 1.01), (2.35, 3.481)]
    assert [text for *_, text in found] == [b"speech"] * 2


@pytest.mark.parametrize("name", EVENT_FORMATS)
def test_a_file_whose_name_is_no_text_is_named_all_the_same(name):
    rows = [
        {"record": "caf\udce9", "event": kind, "label": "speech", "time": 1.0, "index": 0}
        for kind in ("start", "end")
    ]
    assert rb"caf\udce9" in write(make(name), [rows]).replace(rb"\\", b"\\")


NO_CLOCK = Manifest(
    1,
    "still",
    "0" * 64,
    "t",
    Input("i", "features", "float32"),
    (Output("voice", "probability", (1,), (1, 1), ("speech",)),),
    (),
    1,
    events=VOICE.events,
)


@pytest.mark.parametrize(
    ("name", "emit", "manifest", "message"),
    [
        *[(name, "items", VOICE, "not items; use --format jsonl") for name in ("rttm", "vtt", "srt")],
        *[(name, "events", NO_CLOCK, "has no rate") for name in ("rttm", "vtt", "srt")],
        ("wav", "events", VOICE, "wav holds samples, not events; voice gives none"),
        ("wav16", "items", VOICE, "wav16 holds samples, not items"),
    ],
)
def test_a_format_that_cannot_carry_the_rows_is_refused_at_once(name, emit, manifest, message):
    with pytest.raises(UsageError, match=message):
        make_format(name, None, manifest, make_rows(manifest, emit))
    with pytest.raises(UsageError, match=message):
        make_format(None, Path(f"out.{name}"), manifest, make_rows(manifest, emit)) if name != "wav16" else (
            make_format(name, Path("out.wav"), manifest, make_rows(manifest, emit))
        )


def test_events_without_a_clock_are_numbered():
    rows = [
        {"event": "start", "label": "speech", "index": 3},
        {"event": "end", "label": "speech", "index": 12},
    ]
    assert write(make("txt", manifest=NO_CLOCK), [rows]) == b"3\t12\tspeech\n"
    assert read_csv(write(make("csv", manifest=NO_CLOCK), [rows])) == rows


def test_the_name_of_the_output_tells_the_format():
    rows = EventRows(VOICE)
    for name in ("csv", "rttm", "vtt", "srt", "txt", "parquet", "jsonl"):
        assert make_format(None, Path(f"x.{name.upper()}"), VOICE, rows).name == name
    assert make_format(None, Path("x.log"), VOICE, rows).name == "jsonl"
    assert make_format(None, None, VOICE, rows).name == "jsonl"
    assert make_format("csv", Path("x.vtt"), VOICE, rows).name == "csv"
    assert set(FORMATS) == {*EVENT_FORMATS, "wav", "wav16"}


def test_binary_is_refused_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="not for a terminal"):
        make_format("parquet", None, VOICE, EventRows(VOICE))


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"pip install 'streamssm\[parquet\]'"):
        make("parquet")


@pytest.mark.parametrize("name", EVENT_FORMATS)
def test_a_state_of_another_format_or_a_damaged_one_is_refused(name):
    other = "csv" if name != "csv" else "vtt"
    with pytest.raises(SnapshotError, match="use the same --format"):
        make(name).restore(make(other).state())
    damaged = {key: value if key == "format" else ["?"] for key, value in make(name).state().items()}
    if len(damaged) > 1:
        with pytest.raises(SnapshotError, match="save it again"):
            make(name).restore(damaged)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("-", "stdin"),
        ("folder/two words.wav", "two_words"),
        ("sim:talk.flac", "talk"),
        ("mqtts://me:secret@host:1883/site/mic-17", "mic-17"),
        ("ws://me:secret@host", "host"),
        ("mic", "mic"),
    ],
)
def test_rttm_names_the_recording_and_never_a_password(uri, expected):
    rows = [
        {"event": kind, "label": "speech", "time": time, "index": 0}
        for kind, time in (("start", 1.0), ("end", 2.0))
    ]
    found, _ = read_rttm(write(make("rttm", uri=uri), [rows]))
    assert found == [Span(expected, "speech", 10**6, 2 * 10**6)]
