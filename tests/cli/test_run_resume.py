"""Runs that are saved, cut off and resumed: where they go on, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pytest
from cli_tools import write_wav
from voice_toy import recording

import streamssm

RUN = ("run", "voice.onnx")


@pytest.fixture
def folder(made, tmp_path):
    """A folder of recordings, and one of them alone, that a test may change."""
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", recording(1.0 + number / 10, seed=number))
    shutil.copy(made / "speech.wav", tmp_path / "speech.wav")
    return tmp_path


def interrupted(process, made, *arguments, lines: int) -> bytes:
    """Run until so many lines are there, then a SIGTERM; what was printed."""
    running = process(*arguments)
    found = [running.stdout.readline() for _ in range(lines)]
    running.send_signal(signal.SIGTERM)
    # communicate() would pass by what a readline has read ahead
    out, err = running.stdout.read(), running.stderr.read()
    assert running.wait(timeout=20) == 130, err
    for pipe in (running.stdin, running.stdout, running.stderr):
        pipe.close()
    return b"".join(found) + out


@pytest.mark.parametrize("emit", ["events", "items"])
def test_an_interrupted_file_goes_on_where_it_was(call, process, folder, emit):
    source, state = folder / "speech.wav", folder / "s.state"
    whole = call(*RUN, source, "--emit", emit).stdout_bytes
    first = interrupted(
        process, folder, *RUN, f"sim:{source}", "--emit", emit, "--save-state", state, lines=1
    )
    rest = call(*RUN, source, "--emit", emit, "--resume", state)
    assert f"{source} goes on at item" in rest.stderr
    assert first + rest.stdout_bytes == whole


def test_a_folder_goes_on_in_the_middle_of_a_record(call, process, folder):
    whole = call(*RUN, folder, "--emit", "items").stdout_bytes
    state, output = folder / "s.state", folder / "out.jsonl"
    sim = (f"sim:{folder}", "--emit", "items", "--save-state", state, "-o", output)
    running = process(*RUN, *sim, "--save-every", 0.05, "-q")
    while not state.exists() or b"1.wav" not in output.read_bytes():
        time.sleep(0.005)
    time.sleep(0.4)  # several saves, also on a slow disk
    running.kill()
    running.communicate(timeout=20)
    resumed = call(*RUN, folder, *sim[1:], "--resume", state, "--save-every", 1)
    assert "of 1.wav, after 1 records" in resumed.stderr
    assert output.read_bytes() == whole
    again = call(*RUN, folder, *sim[1:], "--resume", state)
    assert "nothing is left" in again.stderr
    assert output.read_bytes() == whole
    # each record is ended, so the tail of the last one is there already
    assert call(*RUN, folder, "--emit", "items", "--resume", state).stdout_bytes == b""


def test_a_complete_source_is_not_taken_twice_unless_asked(call, folder):
    source, state, output = folder / "speech.wav", folder / "s.state", folder / "out.jsonl"
    whole = call(*RUN, source).stdout_bytes
    call(*RUN, source, "--save-state", state, "-o", output)
    ended = call(*RUN, source, "--resume", state, "-o", output)
    assert "nothing is left" in ended.stderr
    assert output.read_bytes() == whole
    twice = call(*RUN, source, "--resume", state, "--from-start")
    assert twice.stdout_bytes
    assert json.loads(twice.stdout.splitlines()[-1])["index"] == 599
    # what has come in its place is new
    write_wav(source, recording(0.5, seed=9))
    assert "nothing is left" not in call(*RUN, source, "--resume", state, "-q").stderr
    other = call(*RUN, folder / "1.wav", "--resume", state)
    assert json.loads(other.stdout.splitlines()[-1])["index"] > 300


def test_the_next_source_is_appended_to_the_same_output(call, folder):
    first, second, state, output = (folder / name for name in ("0.wav", "1.wav", "s.state", "out.csv"))
    x = np.concatenate([recording(1.0, seed=0), recording(1.1, seed=1)])
    write_wav(folder / "both.wav", x)
    call(*RUN, folder / "both.wav", "-o", folder / "both.csv")
    call(*RUN, first, "--save-state", state, "-o", output)
    call(*RUN, second, "--resume", state, "-o", output)
    assert output.read_bytes() == (folder / "both.csv").read_bytes()


def cut_in_the_middle(process, folder, *options: object):
    """A state that was saved in the middle of speech.wav."""
    state = folder / "s.state"
    running = process(
        *RUN, f"sim:{folder / 'speech.wav'}", "--save-state", state, "--save-every", 0.05, *options
    )
    while not state.exists() or streamssm.load(folder / "voice.onnx").resume(state).position < 800:
        time.sleep(0.01)
    running.kill()
    running.communicate(timeout=20)
    return state


def test_what_does_not_fit_the_state_is_refused(call, refused, process, made, folder):
    shutil.copy(made / "voice.onnx", folder)
    output = folder / "out.jsonl"
    state, source = cut_in_the_middle(process, folder, "--emit", "items", "-o", output), folder / "speech.wav"
    resume = (*RUN, source, "--emit", "items", "--resume", state)
    before = source.read_bytes()
    output.write_bytes(output.read_bytes()[:10])
    line = refused(*resume, "-o", output, "-q", code=1)
    assert "has 10 bytes" in line
    assert "read with another channel" in refused(*resume, "--channel", 1, "-q", code=1)
    source.write_bytes(before + b"\0\0")
    line = refused(*resume, "-q", code=1)
    assert "has changed since" in line
    assert "--from-start" in line
    assert call(*resume, "--from-start", "-q").exit_code == 0
    source.write_bytes(before)
    state.write_bytes(state.read_bytes()[:-1])
    assert "damaged" in refused(*resume, "-q", code=1)


def test_the_state_is_saved_while_a_pipe_is_silent(process, made, tmp_path):
    state = tmp_path / "s.state"
    running = process(
        *RUN,
        "-",
        "--input-format",
        "s16le",
        "--save-state",
        state,
        "--save-every",
        0.05,
        "-o",
        tmp_path / "o",
    )
    running.stdin.write(recording()[:9000].tobytes())
    running.stdin.flush()
    deadline = time.monotonic() + 20
    model = streamssm.load(made / "voice.onnx")
    while not (state.exists() and model.resume(state).position == 9000) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    running.communicate(timeout=20)
    assert model.resume(state).position == 9000
    assert b"start" in (tmp_path / "o").read_bytes()


def test_a_service_needs_one_command_line(call, folder):
    state = folder / "s.state"
    command = (*RUN, folder / "speech.wav", "--save-state", state, "--resume", state)
    first = call(*command)
    assert "is not there yet: starting anew" in first.stderr
    assert first.stdout_bytes
    assert call(*command).stdout_bytes == b""


def test_a_file_that_grows_goes_on_where_it_was(process, call, made, tmp_path):
    log, state, output = tmp_path / "log.csv", tmp_path / "s.state", tmp_path / "out.jsonl"
    run = ("run", "ema.onnx", f"tail:{log}", "--block", 1, "-o", output)
    keep = ("--save-state", state, "--save-every", 0.05, "--resume", state)

    def follow(signal_number: int) -> str:
        """Until all of the log is in the state; what was said."""
        rows = log.read_text().count("\n") - 1
        running = process(*run, *keep)
        while not state.exists() or rows != streamssm.load(made / "ema.onnx").resume(state).position:
            time.sleep(0.02)
        running.send_signal(signal_number)
        said = running.communicate(timeout=20)[1].decode()
        assert running.returncode in (130, -signal.SIGKILL)
        return said

    def grow(*rows: str) -> None:
        with log.open("a") as file:
            file.writelines(f"{row}\n" for row in rows)

    grow("a,b", "1,2", "3,4", "5,6")
    follow(signal.SIGKILL)
    grow("7,8", "9,1")
    assert "goes on at item 3" in follow(signal.SIGTERM)
    grow("2,3")
    assert "goes on at item 5" in follow(signal.SIGTERM)
    whole = call("run", "ema.onnx", log, "--block", 1).stdout_bytes
    assert output.read_bytes() == whole
    # another file of that name, with the same beginning
    shutil.copy(log, tmp_path / "new.csv")
    (tmp_path / "new.csv").rename(log)
    running = process(*run, *keep)
    while output.read_bytes().count(b"\n") < 12:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert b"is taken from its beginning" in running.communicate(timeout=20)[1]
    assert output.read_bytes().startswith(whole)


def test_saving_leaves_no_other_file_and_does_not_change_the_output(call, folder):
    (folder / "state").mkdir()
    expected = call(*RUN, folder / "speech.wav", "--emit", "items", "--save-state", folder / "a").stdout_bytes
    state = folder / "state" / "s.state"
    often = ("--save-state", state, "--save-every", 0.001, "--stats", folder / "stats.json")
    found = call(*RUN, folder / "speech.wav", "--emit", "items", "--chunk", 1000, *often)
    assert found.stdout_bytes == expected
    assert json.loads((folder / "stats.json").read_text())["saves"] >= 1
    assert [path.name for path in state.parent.iterdir()] == ["s.state"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save-every", 1), "say where with --save-state"),
        (("--from-start",), "goes on with --resume"),
        (("--save-state", "a.state", "--save-every", 1, "-o", "x.parquet"), "cannot be continued"),
        (("--save-state", "a.state", "--save-every", 0), "not in the range"),
        (("--decide", 0.5, "--emit", "items"), "leave --emit items out"),
    ],
)
def test_wrong_usage(refused, made, options, message):
    assert message in refused(*RUN, "speech.wav", *options, "-q", code=2)


def test_a_disk_that_fills_up_ends_the_run(refused, made, tmp_path, monkeypatch):
    from streamssm.errors import OutputError
    from streamssm.running import snapshot

    def fail(*arguments: object, **options: object) -> None:
        raise OutputError("s.state cannot be written: No space left on device")

    monkeypatch.setattr(snapshot, "write_bytes", fail)
    command = (*RUN, "sim:speech.wav", "--save-state", tmp_path / "s.state", "--save-every", 0.05, "-q")
    began = time.monotonic()
    assert "No space left" in refused(*command, code=1)
    assert time.monotonic() - began < 2.5
