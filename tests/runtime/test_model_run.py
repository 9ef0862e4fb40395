"""``model.run``: the rows of the command line, for scripts."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import streamssm
from streamssm.cli import cli
from streamssm.errors import InputError, SourceError, UsageError
from streamssm.sources.base import Gap, Source

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from cli_tools import write_wav
from click.testing import CliRunner
from voice_toy import recording, voice_toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    voice_toy().write(made)
    (made / "wavs").mkdir()
    for number in range(2):
        write_wav(made / "wavs" / f"{number}.wav", recording(1.0, seed=number))
    write_wav(made / "speech.wav", recording())
    return made


@pytest.fixture(scope="module")
def model(folder):
    return streamssm.load(folder / "voice.onnx")


class Given(Source):
    """Pieces of items, gaps between them, and an error at the end."""

    def __init__(self, *pieces: object):
        self.name, self.closed = "given", 0
        self._pieces = list(pieces)

    def read(self, count: int) -> np.ndarray:
        self.gaps = ()
        piece = self._pieces.pop(0) if self._pieces else np.zeros(0, np.float32)
        while isinstance(piece, Gap):
            self.gaps = (*self.gaps, piece)
            piece = self._pieces.pop(0) if self._pieces else np.zeros(0, np.float32)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.closed += 1


def samples(seconds: float = 3.0) -> np.ndarray:
    return recording(seconds).astype(np.float32) / 32768


@pytest.mark.parametrize("emit", [None, "items"])
@pytest.mark.parametrize("source", ["speech.wav", "wavs"])
def test_the_rows_of_the_command_line(model, folder, source, emit):
    options = [] if emit is None else ["--emit", emit]
    wanted = CliRunner().invoke(cli, ["run", str(folder / "voice.onnx"), str(folder / source), *options])
    for chunk in (None, 56, 100_000):
        rows = list(model.run(folder / source, emit=emit, chunk=chunk))
        assert rows == [json.loads(line) for line in wanted.stdout.splitlines()]
    run = model.run(str(folder / source))
    assert run.report.items == 0
    assert len(list(run)) == run.report.lines
    assert run.report.items == (24000 if source == "speech.wav" else 16000)


def test_a_source_of_ones_own_with_gaps(model):
    x = samples()
    source = Given(x[:8000], Gap("device", 1600), Gap("disconnected", None, 2.5), x[9600:], Gap("invalid"))
    with model.run(source, emit="items") as run:
        rows = list(run)
    silent = np.concatenate([x[:8000], np.zeros(1600, np.float32), x[9600:]])
    items = [row for row in rows if "gap" not in row]
    np.testing.assert_array_equal(
        np.array([row["speech"] for row in items], np.float32), model.scan(silent)[:, 0]
    )
    assert [row for row in rows if "gap" in row] == [
        {"gap": "device", "items": 1600, "seconds": None, "time": 1.0},
        {"gap": "disconnected", "items": None, "seconds": 2.5, "time": 1.2},
        {"gap": "invalid", "items": None, "seconds": None, "time": 3.0},
    ]
    assert run.report.summary()["gaps"]["disconnected"] == {"count": 1, "items": 0, "seconds": 2.5}
    assert "gaps: device 1 (1600 items), disconnected 1 (2.5 s), invalid 1" in run.report.text()
    assert source.closed


@pytest.mark.parametrize("missing", [81, 160, 8000 * 86400])
@pytest.mark.parametrize("reason", ["dropped", "missing"])
@pytest.mark.parametrize("emit", [None, "items"])
def test_a_long_gap_costs_little_and_times_after_it_are_true(model, reason, missing, emit):
    x = samples()
    begun = 8040  # inside a hop
    with model.run(Given(x[:begun], Gap(reason, missing), x[begun:]), emit=emit) as run:
        rows = [row for row in run if "gap" not in row]
    report = run.report
    assert report.filled + report.passed == missing
    assert report.filled <= (80_000 if reason == "missing" else 160) + 80
    filled = np.concatenate([x[:begun], np.zeros(report.filled, np.float32), x[begun:]])
    settled = (begun + report.filled) / 8000  # up to here stand-ins alone come in
    for row, other in zip(rows, model.run(Given(filled), emit=emit), strict=True):
        assert {**row, "time": 0, "index": 0} == {**other, "time": 0, "index": 0}
        if other["time"] < begun / 8000:
            assert row["time"] == other["time"]
        elif other["time"] >= settled:
            assert row["time"] == pytest.approx(other["time"] + report.passed / 8000, abs=1e-6)


def test_an_error_comes_after_the_rows_before_it(model):
    x, source = samples(), None
    source = Given(x[:13000], SourceError("gone"))
    rows = []
    with pytest.raises(SourceError, match="gone"):
        rows.extend(model.run(source))
    assert rows == list(model.run(Given(x[:13000])))
    assert source.closed


@pytest.mark.parametrize("emit", [None, "items"])
def test_what_was_pending_is_flushed_before_a_chunk_that_is_refused(model, emit):
    x, rows = samples(), []
    with pytest.raises(InputError, match="nan"):
        rows.extend(model.run(Given(x[:13000], np.full(8, np.nan, np.float32)), emit=emit, chunk=8))
    assert rows == list(model.run(Given(x[:13000]), emit=emit))


def test_a_run_is_stopped_from_another_thread_or_its_own(model, folder):
    read, write = os.pipe()
    os.write(write, recording()[:9000].tobytes())
    with open(read, "rb") as file:
        run = model.run(f"/dev/fd/{file.fileno()}", format="s16le")
        threading.Timer(0.2, run.stop).start()
        rows = list(run)
    os.close(write)
    assert [row["event"] for row in rows] == ["start", "end"]
    assert rows[-1] == {"event": "end", "label": "speech", "time": 1.12, "index": 112, "cut": True}
    run = model.run(folder / "speech.wav", emit="items")
    first = next(run)
    run.stop()
    assert [first, *run] == list(model.run(folder / "speech.wav", emit="items"))[:1]


def test_letting_go_closes_the_source(model):
    gc.disable()
    try:
        for leave in (lambda run: run.close(), lambda run: None):
            source = Given(samples(), samples())
            run = model.run(source, emit="items")
            next(run)
            leave(run)
            del run
            assert source.closed
    finally:
        gc.enable()
    run = model.run(Given(samples()))
    run.close()
    assert list(run) == []


def test_a_queue_in_front_of_a_pipe(model):
    from streamssm.live.queue import Queue

    read, write = os.pipe()
    sent = threading.Thread(target=lambda: (os.write(write, recording().tobytes()[:60000]), os.close(write)))
    sent.start()
    with open(read, "rb") as file:
        run = model.run(f"/dev/fd/{file.fileno()}", format="s16le", queue=Queue(items=100, policy="spill"))
        rows = list(run)
    sent.join()
    assert rows == list(model.run(Given(samples()[:30000])))
    assert run.report.summary()["queue"]["accepted"] == min(30000, 24000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_gap": "guess"}, "neither 'fill' nor 'skip'"),
        ({"chunk": 0}, "not positive"),
        ({"colour": 1}, "no argument colour"),
        ({"decide": 0.9, "emit": "items"}, "decisions"),
        ({"emit": "tokens"}, "logits"),
        ({"emit": "nonsense"}, "emit = .nonsense. is none of events, items, audio, tokens"),
    ],
)
def test_wrong_arguments(model, folder, options, message):
    with pytest.raises(UsageError, match=message):
        model.run(folder / "speech.wav", **options)
