"""The page's parts, each alone, in the browser that they are written for."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from chromium import Tab, browser, program
from test_page_files import FOLDER

pytest.importorskip("websockets", reason="Chromium is driven over a websocket: pip install websockets")
pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium: apt-get install chromium")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=FOLDER))
    Thread(target=server.serve_forever, daemon=True).start()
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        tab.open(f"http://127.0.0.1:{server.server_port}/icon.svg")
        yield tab
    server.shutdown()


def run(tab: Tab, module: str, code: str, **values: Any) -> Any:
    """What a function's body returns that sees the module as ``m``."""
    names, data = ", ".join(values), ", ".join(map(json.dumps, values.values()))
    return tab.value(f"import('/{module}').then(m => (({names}) => {{ {code} }})({data}))")


def test_series_keeps_the_latest_rows(tab):
    assert run(
        tab,
        "series.js",
        """const s = new m.Series(10, 2, 8);
        for (let i = 0; i < 21; i += 1) s.append([i, -i]);
        const old = Number.isNaN(s.value(0, 2));
        return [s.end, s.rows <= 8, s.value(0, 20), s.value(1, 20), old, s.extent(0, 0, 99)[1]];""",
    ) == [21, True, 20, -20, True, 20]


@pytest.mark.parametrize("pieces", [[100], [1] * 100, [33, 0, 60, 7]])
def test_series_is_the_same_for_every_split(tab, pieces):
    assert run(
        tab,
        "series.js",
        """const s = new m.Series(10, 1, 40); let next = 0;
        for (const size of pieces) { s.append(Array.from({length: size}, () => next++)); }
        return [s.end, s.value(0, 99), s.value(0, 95), s.extent(0, 90, 100)];""",
        pieces=pieces,
    ) == [100, 99, 95, [90, 99]]


def test_series_with_a_hole(tab):
    assert run(
        tab,
        "series.js",
        """const s = new m.Series(10, 1, 100); s.append([1, 2]); s.skipTo(5); s.append([7]); s.skipTo(3);
        return [s.end, Number.isNaN(s.value(0, 3)), s.value(0, 5), s.extent(0, 2, 5), s.extent(0, 0, 9)];""",
    ) == [6, True, 7, None, [1, 7]]


def test_envelope_of_a_rate_that_is_no_multiple_of_a_hundred(tab):
    got = run(
        tab,
        "series.js",
        """const e = new m.Envelope(22050, 10); e.push(new Float32Array(22050).fill(0.5)); e.push([-1]);
        return [e.samples / 22050, e.series.end / e.series.rate, e.series.extent(1, 0, 9)];""",
    )
    assert got[0] == pytest.approx(1, abs=1e-3)
    assert got[1] == pytest.approx(1, abs=0.02)
    assert got[2] == [0.5, 0.5]


def test_outbox_forgets_what_was_answered_and_what_is_too_much(tab):
    assert run(
        tab,
        "outbox.js",
        """const o = new m.Outbox(100), seen = [];
        const note = () => seen.push([o.start, o.end, o.chunks.reduce((n, c) => n + c.length, 0)]);
        for (let i = 0; i < 3; i += 1) o.push(new Float32Array(30).fill(i));
        note(); o.forget(45); note(); seen.push(o.chunks[0][0]); o.forget(20); note();
        for (let i = 3; i < 6; i += 1) o.push(new Float32Array(30));
        note(); o.forget(500); note(); return seen;""",
    ) == [[0, 90, 90], [45, 90, 45], 1, [45, 90, 45], [80, 180, 100], [180, 180, 0]]


def test_percentiles_of_the_latest_values(tab):
    assert run(
        tab,
        "latency.js",
        """const p = new m.Percentiles(), none = p.at(0.5);
        for (let i = 1; i <= 100; i += 1) p.add(i);
        const first = [p.at(0.5), p.at(0.9), p.at(0.99), p.at(1)];
        for (let i = 0; i < 1000; i += 1) p.add(7);
        return [none, first, p.at(1)];""",
    ) == [None, [50, 90, 99, 100], 7]


def test_marks_answer_once_the_chunk_was_sent(tab):
    assert run(
        tab,
        "latency.js",
        """const k = new m.Marks(); k.sent(160); k.sent(320);
        return [k.answered(160) >= 0, k.answered(161) >= 0, k.answered(320) >= 0, k.answered(321)];""",
    ) == [True, True, True, None]


def wav(rate: int, *before: tuple[bytes, bytes]) -> bytes:
    form = (b"fmt ", struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16))
    chunks = b"".join(
        name + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for name, d in [*before, form]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


ID3 = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + b"\0" * 130
HEADERS = {
    "wav": (wav(16000), 16000),
    "wav, odd chunk first": (wav(44100, (b"LIST", b"abc")), 44100),
    "wav without a format": (b"RIFF\4\0\0\0WAVE", None),
    "flac": (b"fLaC" + b"\0" * 14 + struct.pack(">I", 96000 << 12) + b"\0" * 8, 96000),
    "flac, cut": (b"fLaC\0\0", None),
    "opus": (b"OggS" + b"\0" * 22 + b"\1\x13" + b"OpusHead" + b"\0" * 11, 48000),
    "vorbis": (b"OggS" + b"\0" * 22 + b"\1\x1e" + b"\1vorbis" + struct.pack("<IBI", 0, 1, 22050), 22050),
    "mp3": (bytes([0xFF, 0xFB, 0x90, 0]), 44100),
    "mp3 with a tag": (ID3 + bytes([0xFF, 0xF3, 0x94, 0]), 24000),
    "mp3, no such rate": (bytes([0xFF, 0xFB, 0x9C, 0]), None),
    "text": (b"hello", None),
    "nothing": (b"", None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_rate_of_a_header(tab, name):
    data, rate = HEADERS[name]
    code = "return m.sniffRate(new DataView(Uint8Array.from(data).buffer));"
    assert run(tab, "recording.js", code, data=list(data)) == rate


def test_rate_of_any_start_of_a_file_is_found_or_unknown(tab):
    """No header, however cut, is read beyond its end."""
    starts = [list(data[:size]) for data, _ in HEADERS.values() for size in range(len(data))]
    code = "return starts.map(s => m.sniffRate(new DataView(Uint8Array.from(s).buffer))).length;"
    assert run(tab, "recording.js", code, starts=starts) == len(starts)


@pytest.mark.parametrize(
    ("seconds", "digits", "text"),
    [
        (0, 1, "0:00.0"),
        (9.96, 1, "0:10.0"),
        (59.999, 2, "1:00.00"),
        (61, 0, "1:01"),
        (3661.5, 1, "1:01:01.5"),
    ],
)
def test_clock(tab, seconds, digits, text):
    assert run(tab, "draw.js", "return m.clockText(seconds, digits);", seconds=seconds, digits=digits) == text
