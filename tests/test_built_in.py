"""The built-in ``vad`` as users meet it: by its name, on a recorded voice, in real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import wave
from itertools import pairwise
from pathlib import Path

import pytest

import streamssm

ROOT = Path(__file__).parents[1]
SPEECH = ROOT / "examples" / "audio" / "speech.wav"
STREAMSSM = Path(sys.executable).with_name("streamssm")


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([STREAMSSM, *map(str, arguments)], input=stdin, capture_output=True, check=False)


def test_it_is_small_and_says_what_it_is() -> None:
    model = streamssm.load("vad")
    assert model.manifest.parameters <= 500_000
    assert model.path.stat().st_size <= 2 * 2**20
    assert (model.manifest.input.rate, model.manifest.input.hop) == (16_000, 160)
    assert model.manifest.license


def test_four_sentences_give_four_events() -> None:
    events = [json.loads(line) for line in run("run", "vad", SPEECH).stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "end"] * 4
    starts = [event["time"] for event in events[::2]]
    assert starts == sorted(starts)
    assert all(0.5 < b - a < 5 for a, b in pairwise(starts))


@pytest.mark.parametrize("emit", ["events", "items"])
def test_any_chunk_and_source_prints_the_same_bytes(emit: str) -> None:
    with wave.open(str(SPEECH)) as file:
        raw = file.readframes(file.getnframes())
    wanted = run("run", "vad", SPEECH, "--emit", emit)
    assert wanted.returncode == 0
    assert wanted.stdout
    for options in (["--chunk", "7ms"], ["--chunk", "1s"]):
        assert run("run", "vad", SPEECH, "--emit", emit, *options).stdout == wanted.stdout
    piped = run("run", "vad", "-", "--input-format", "s16le", "--rate", 16000, "--emit", emit, stdin=raw)
    assert piped.stdout == wanted.stdout
    assert run("run", "vad", "-", "--emit", emit, stdin=SPEECH.read_bytes()).stdout == wanted.stdout


def test_check_passes_and_one_flipped_byte_fails_it(tmp_path: Path) -> None:
    passed = run("check", "vad", "--splits", 5, "--items", 16_000)
    assert passed.returncode == 0, passed.stderr
    assert b"PASS" in passed.stdout
    copy = tmp_path / "vad.onnx"
    shutil.copy(streamssm.load("vad").path, copy)
    data = bytearray(copy.read_bytes())
    data[len(data) // 3] ^= 1  # the lowest bit of a byte among the weights
    copy.write_bytes(data)
    failed = run("check", copy)
    assert failed.returncode == 3
    assert b"PASS" not in failed.stdout
    assert len(failed.stderr.splitlines()) == 1
