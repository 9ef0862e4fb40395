# ruff: noqa: D103
"""python -m pytest examples/audio/test_live_examples.py: the examples that listen, as processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

import streamssm

HERE = Path(__file__).parent
SPEECH = HERE / "speech.wav"


@pytest.fixture(scope="module")
def events() -> list[dict]:
    return list(streamssm.load("vad").run(SPEECH))


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels()) == (16000, 1)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)


def test_every_utterance_becomes_a_file(events, tmp_path) -> None:
    done = example("mic_vad.py", SPEECH, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(tmp_path.iterdir())
    starts = [event["time"] for event in events if event["event"] == "start"]
    ends = [event["time"] for event in events if event["event"] == "end"]
    whole = samples(SPEECH)
    assert len(files) == len(starts) == done.stdout.count("\n")
    for path, start, end in zip(files, starts, ends, strict=True):
        first = round((start - 0.3) * 16000)
        part = samples(path)
        assert np.abs(part - whole[first : first + len(part)]).max() <= 1
        assert len(part) == min(round((end + 0.3) * 16000), len(whole)) - first


def test_a_missing_microphone_is_said(tmp_path) -> None:
    done = example("mic_vad.py", "mic:no such microphone", "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_client_prints_the_servers_events(events) -> None:
    pytest.importorskip("aiohttp", reason="pip install 'streamssm[serve]'")
    program = [sys.executable, "-c", "from streamssm.cli import main; main()", "serve", "vad", "--port", "0"]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"//(\S+)/", server.stderr.readline())
            assert found is not None
            done = example("ws_client.py", f"ws://{found[1]}", SPEECH)
        finally:
            server.terminate()
    assert [json.loads(line) for line in done.stdout.splitlines()] == events
    refused = example("ws_client.py", f"ws://{found[1]}", SPEECH)
    assert refused.returncode == 1
    assert "is 'streamssm serve' running there" in refused.stderr


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_folder_without_recordings_is_said(kind, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    done = example("folder_batch.py", tmp_path / kind, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path / kind} ")
    assert done.stderr.count("\n") == 1


def test_a_folder_is_worked_through(events, tmp_path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    shutil.copy(SPEECH, folder / "one.wav")
    shutil.copy(SPEECH, folder / "below" / "two.wav")
    (folder / "broken.wav").write_bytes(b"RIFF, but no more")
    (folder / "notes.txt").write_text("not audio", encoding="utf-8")
    done = example("folder_batch.py", folder, "--out", out, "--jobs", 2)
    assert done.returncode == 1
    assert "broken.wav" in done.stderr
    assert "3 of 3 files" in done.stderr
    for name in ("one.wav.jsonl", "below/two.wav.jsonl"):
        lines = (out / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == events
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "one.wav.jsonl",
        "two.wav.jsonl",
    ]
