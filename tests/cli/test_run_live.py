"""``streamssm run`` on what comes by itself: signals, full pipes, overruns, gaps, records, statistics."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from cli_tools import write_wav
from voice_toy import RATE, recording

import streamssm

RUN = ("run", "voice.onnx")
RAW = (*RUN, "-", "--input-format", "s16le")


def lines(text: str | bytes) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def ended(running: subprocess.Popen) -> tuple[bytes, bytes]:
    """The rest of the output and the errors; communicate() would pass by what a readline has read ahead."""
    out, err = running.stdout.read(), running.stderr.read()
    running.wait(timeout=20)
    for pipe in (running.stdin, running.stdout, running.stderr):
        if pipe is not None:
            pipe.close()
    return out, err


def stats(path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011])
@pytest.mark.parametrize("policy", ["block", "spill"])
def test_a_signal_loses_nothing_that_was_read(process, tmp_path, policy, delay):
    """What was taken out of the pipe was pushed: the rest is still in it."""
    read, write = os.pipe()
    report = tmp_path / "stats.json"
    queue = ("--on-overrun", policy, "--queue", 400)
    running = process(*RAW, "--emit", "items", "--stats", report, "--chunk", 7, *queue, stdin=read)
    samples = np.tile(recording(), 20).tobytes()
    os.set_blocking(write, False)
    sent = os.write(write, samples)
    running.stdout.readline()
    time.sleep(delay)
    running.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while running.poll() is None and time.monotonic() < deadline:
        try:
            sent += os.write(write, samples[: 1 << 12])
        except BlockingIOError:
            time.sleep(0.001)
    os.close(write)
    out, err = ended(running)
    left = len(b"".join(iter(lambda: os.read(read, 1 << 16), b"")))
    os.close(read)
    assert running.returncode == 130, err
    taken = stats(report)["items"]
    assert 2 * taken + left == sent
    assert len(out.splitlines()) + 1 == -(-taken // 80)


def fill(running: subprocess.Popen) -> None:
    """Wait until the output pipe, made small, is full: the program is in a write that nobody takes."""
    fcntl.fcntl(running.stdout, fcntl.F_SETPIPE_SZ, 4096)
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 0.2 or not before:
        (there,) = struct.unpack("i", fcntl.ioctl(running.stdout, termios.FIONREAD, b"\0" * 4))
        if there != before:
            before, since = there, time.monotonic()
        time.sleep(0.01)


def test_a_reader_that_is_slow_gets_everything_after_a_signal(process):
    running = process(*RUN, "speech.wav", "--emit", "items", "-q")
    fill(running)
    running.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=0.3)
    out, err = ended(running)
    assert running.returncode == 130, err
    found = lines(out)
    assert [line["time"] for line in found] == [number / 100 for number in range(len(found))]
    assert 100 < len(found) < 300


def test_a_second_signal_ends_it_although_nobody_reads(process):
    running = process(*RUN, "speech.wav", "--emit", "items", "-q")
    fill(running)
    running.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=10) == 130
    assert running.stderr.read().strip() == b"error: interrupted"
    running.stdout.close()
    running.stderr.close()


def ready(running: subprocess.Popen) -> None:
    """Wait until the program catches SIGTERM: it has been set up and reads."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = Path(f"/proc/{running.pid}/status").read_text()
        (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)
    raise AssertionError("it catches no SIGTERM")


@pytest.mark.parametrize("arguments", [("-",), ("-", "--input-format", "s16le", "--on-overrun", "spill")])
def test_a_signal_before_the_first_byte(process, arguments):
    running = process(*RUN, *arguments)
    ready(running)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) == 130  # standard input is still open
    out, err = ended(running)
    assert out == b""
    assert b"Traceback" not in err


@pytest.mark.parametrize("policy", ["block", "spill"])
def test_a_signal_after_lines_that_were_left_out(process, policy):
    run = ("run", "ema.onnx", "-", "--input-format", "csv", "--on-bad", "skip", "--block", 1)
    running = process(*run, "--on-overrun", policy, "--on-gap", "skip")
    running.stdin.write(b"1,2\n3,4\n5,x\n7\n")
    running.stdin.flush()
    first = running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 130  # standard input is still open
    found = lines(first + ended(running)[0])
    assert [row.get("gap") for row in found] == [None, None, "invalid"]
    assert found[-1]["items"] == 2


@pytest.mark.parametrize("emit", ["events", "items"])
def test_spill_loses_nothing(call, made, tmp_path, emit):
    expected = call(*RUN, "speech.wav", "--emit", emit).stdout_bytes
    report = tmp_path / "s.json"
    options = ("--emit", emit, "--on-overrun", "spill", "--queue", "10ms", "--stats", report)
    found = call(*RAW, *options, stdin=recording().tobytes())
    assert found.stdout_bytes == expected
    queue = stats(report)["queue"]
    assert (queue["accepted"], queue["dropped"], queue["capacity"]) == (24000, 0, 80)
    assert "queue: " in found.stderr
    assert stats(report)["measured_from"] == "due time"


@pytest.mark.parametrize("on_gap", ["fill", "skip"])
def test_what_is_dropped_is_counted_and_times_stay_true(call, tmp_path, on_gap):
    report = tmp_path / "s.json"
    options = ("--on-overrun", "drop-oldest", "--queue", 800, "--on-gap", on_gap, "--stats", report)
    found = lines(call(*RAW, *options, "--emit", "items", stdin=recording().tobytes()).stdout)
    seen, gaps = stats(report), [row for row in found if "gap" in row]
    dropped = sum(row["items"] for row in gaps)
    assert seen["queue"]["dropped"] == dropped
    assert seen["items"] + dropped == 24000
    assert all(row["gap"] == "dropped" and row["seconds"] is None for row in gaps)
    assert (seen["gaps"]["dropped"]["items"] if gaps else 0) == dropped
    last = [row["time"] for row in found if "gap" not in row][-1]
    assert [row["time"] for row in found if "gap" not in row] == sorted(
        {row["time"] for row in found if "gap" not in row}
    )
    total = 24000 if on_gap == "fill" else 24000 - dropped
    assert last == (-(-total // 80) - 1) / 100
    assert seen["filled_items"] + seen["passed_items"] == (dropped if on_gap == "fill" else 0)
    assert seen["filled_items"] <= 2 * 80 * len(gaps)  # what is dropped must not cost as much as what is run


@pytest.mark.parametrize("policy", ["drop-oldest", "spill"])
def test_a_played_file_and_its_overruns(call, made, policy):
    write_wav(made / "short.wav", recording(0.3))
    expected = call(*RUN, "short.wav")
    found = call(*RUN, "sim:short.wav", "--on-overrun", policy)
    assert found.stdout_bytes == expected.stdout_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("voice.onnx", "speech.wav", "--on-overrun", "spill"), "waits for its reader"),
        (("tokens.onnx", "-", "--on-overrun", "spill"), "a text is complete"),
        (("tokens.onnx", "-", "--queue", "1s"), "no clock"),
        (("voice.onnx", "-", "--spill-limit", "1T"), "not a size"),
        (("voice.onnx", "-", "--reconnect", "perhaps"), "neither a number"),
        (("voice.onnx", "-", "--columns", "a,,b"), "an empty name"),
    ],
)
def test_wrong_usage(refused, made, arguments, message):
    assert message in refused("run", *arguments, "-q", code=2, stdin=b"0\n1\n")


def table(made, name: str, times: list[float]) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((len(times), 2)).astype(np.float32)
    rows = [f"{t:.2f},{a},{b}" for t, (a, b) in zip(times, x.tolist(), strict=True)]
    (made / name).write_text("\n".join(["t,a,b", *rows]) + "\n")
    return x


TIMES = [*(i / 50 for i in range(10)), *(i / 50 for i in range(17, 30)), *(i / 50 for i in range(40, 47))]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gaps_of_known_length_are_filled_with_the_last_row(call, made, chunk):
    x = table(made, "gaps.csv", TIMES)
    filled = np.concatenate([x[:10], *[x[9:10]] * 7, x[10:23], *[x[22:23]] * 10, x[23:]])
    expected = streamssm.load(made / "ema.onnx").scan(filled)
    run = ("run", "ema.onnx", "gaps.csv", "--time-column", "t", "--chunk", chunk)
    found = lines(call(*run).stdout)
    gaps = [row for row in found if "gap" in row]
    assert [(row["gap"], row["items"], row["time"]) for row in gaps] == [
        ("missing", 7, 0.2),
        ("missing", 10, 0.6),
    ]
    rows = [row for row in found if "gap" not in row]
    assert [row["time"] for row in rows] == [i / 50 for i in range(47)]
    np.testing.assert_array_equal(np.array([row["y"] for row in rows], np.float32), expected)
    skipped = [row for row in lines(call(*run, "--on-gap", "skip").stdout) if "gap" not in row]
    np.testing.assert_array_equal(
        np.array([row["y"] for row in skipped], np.float32), streamssm.load(made / "ema.onnx").scan(x)
    )


@pytest.mark.parametrize("cut", [8, 9, 10, 11, 12, 23, 24])
def test_gaps_and_a_resumed_run(call, made, tmp_path, cut):
    table(made, "gaps.csv", TIMES)
    run = ("run", "ema.onnx", "gaps.csv", "--time-column", "t", "--chunk", 1)
    whole = call(*run).stdout_bytes
    model, state = streamssm.load(made / "ema.onnx"), tmp_path / "g.state"
    with model.run(made / "gaps.csv", time_column="t", chunk=1) as running:
        first = save_after(running, cut, state, made / "gaps.csv")
    rest = call(*run, "--resume", state, "--chunk", 5)
    assert "goes on at item" in rest.stderr
    assert first + rest.stdout_bytes == whole


def save_after(running, items: int, state, source) -> bytes:
    """Read so many items, then save as the command line does; the lines written so far."""
    from streamssm.running.place import Origin
    from streamssm.running.snapshot import Saver, Snapshots
    from streamssm.sinks.jsonl import JsonLines
    from streamssm.sources import Request

    loop, written = running._loop, []
    loop._write_rows = written.extend
    while loop.place.items < items:
        assert loop.advance()
    request = Request(loop.stream.model.manifest.input, time_column="t")
    snapshots = Snapshots(loop, Origin(str(source), loop.source, request), lambda: (None, None))
    Saver(state, snapshots, lambda: None, loop).save(snapshots.take())
    return JsonLines().rows(written)


def test_records_are_sequences_of_their_own(call, tmp_path):
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", recording(0.9 + number / 10, seed=number))
    for options in (("--emit", "items"), ("--emit", "items", "--chunk", "7ms"), ()):
        found = lines(call(*RUN, tmp_path, *options).stdout)
        for number in range(3):
            name = f"{number}.wav"
            mine = [row for row in found if row["record"] == name]
            assert next(iter(mine[0])) == "record"
            alone = lines(call(*RUN, tmp_path / name, *options).stdout)
            assert [{k: v for k, v in row.items() if k != "record"} for row in mine] == alone
    report = tmp_path / "s.json"
    call(*RUN, tmp_path, "--stats", report)
    assert stats(report)["records"] == 3


def test_a_decision_for_each_record(call, tmp_path):
    write_wav(tmp_path / "loud.wav", recording(1.0))
    write_wav(tmp_path / "quiet.wav", recording(1.0) // 200)
    report = tmp_path / "s.json"
    found = lines(call(*RUN, tmp_path, "--decide", 0.9, "--stats", report).stdout)
    assert [(row["record"], row["label"], row["decided"]) for row in found] == [
        ("loud.wav", "not speech", True),
        ("quiet.wav", "not speech", True),
    ]
    # what follows on a decision is not even read
    assert stats(report)["items"] < 2 * RATE
    assert call(*RUN, tmp_path, "--decide", 0.9, "--chunk", 80).stdout_bytes == b"".join(
        json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in found
    )


def test_what_came_before_the_damage_is_written(call, made, tmp_path):
    x = (recording().astype("<f4") / 32768).tobytes()
    whole = call(*RUN, "-", "--input-format", "f32le", stdin=x).stdout_bytes
    found = call(*RUN, "-", "--input-format", "f32le", stdin=x + b"\0")
    assert found.exit_code == 1
    assert found.stdout_bytes == whole
    assert "in the middle of an item" in found.stderr
    state = tmp_path / "s.state"
    saved = call(*RUN, "-", "--input-format", "f32le", "--save-state", state, stdin=x + b"\0")
    assert saved.exit_code == 1
    assert streamssm.load(made / "voice.onnx").resume(state).position == 24000


def test_what_was_pending_is_flushed_before_a_chunk_that_is_refused(call, tmp_path):
    x, report = (recording() / 32768).astype("<f4")[:7000], tmp_path / "stats.json"
    run = (*RUN, "-", "--input-format", "f32le", "--stats", report)
    whole = call(*run, stdin=x[:6960].tobytes()).stdout_bytes
    assert b'"cut":true' in whole
    x[6990] = np.nan
    found = call(*run, stdin=x.tobytes())
    assert found.exit_code == 1
    assert "holds nan" in found.stderr
    assert found.stdout_bytes == whole
    assert stats(report)["items"] == 6960


def test_the_report_holds_what_was_converted(call, made, tmp_path):
    write_wav(made / "fast.wav", recording(1.0), rate=16000)
    report = tmp_path / "s.json"
    found = call(*RUN, "fast.wav", "--stats", report)
    assert "16000 Hz is converted" in found.stderr
    assert stats(report)["conversions"] == ["fast.wav: 16000 Hz is converted to the model's 8000 Hz"]
    assert stats(report)["gaps"] == {}
    assert stats(report)["queue"] is None
