"""Samples that a model gives, as a sound file: exact frames, on a file and through a pipe."""

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm.errors import UsageError
from streamssm.manifest import Input, Manifest, Output
from streamssm.rows import AudioRows, ItemRows, make_rows
from streamssm.sinks import make_format


def manifest(channels=1, rate=16000.0, ratio=(1, 1)):
    shape = () if channels == 1 else (channels,)
    spec = Input("x", "samples", "float32", rate=rate)
    return Manifest(1, "clean", "0" * 64, "t", spec, (Output("y", "samples", shape, ratio),), (), 1)


def frames(count, channels, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, channels)).astype(np.float32)
    return values[:, 0] if channels == 1 else values


def write(spec, pieces, name="wav", finish=True):
    rows = AudioRows(spec)
    sink = make_format(name, Path("x"), spec, rows)
    data = sink.begin()
    for piece in pieces:
        made = rows.push({"y": piece})
        fresh = make_format(name, Path("x"), spec, rows)
        fresh.restore(json.loads(json.dumps(sink.state())))
        data, sink = data + fresh.rows(made), fresh
    file = io.BytesIO(data + sink.rows(rows.flush()) + sink.end())
    if finish:
        sink.finish(file)
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 300), st.lists(st.integers(0, 300), max_size=5))
def test_frames_are_exact_for_any_split(channels, count, cuts):
    x = frames(count, channels)
    spec = manifest(channels)
    data = write(spec, np.split(x, sorted(min(cut, count) for cut in cuts)))
    assert data == write(spec, [x])
    found, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 16000
    assert found.tobytes() == x.tobytes()


def test_sixteen_bits_are_rounded_and_clipped():
    x = np.array([0, 0.5, -0.5, 1, -1, 2, -2, 1.6 / 32768, np.nan, np.inf, -np.inf], np.float32)
    with wave.open(io.BytesIO(write(manifest(), [x], "wav16"))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        found = np.frombuffer(file.readframes(100), "<i2")
    assert found.tolist() == [0, 16384, -16384, 32767, -32768, 32767, -32768, 2, 0, 32767, -32768]


@pytest.mark.parametrize("name", ["wav", "wav16"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_pipe_has_no_length_and_is_still_read(tmp_path, name, channels):
    from streamssm.sources import Request, open_source

    x = frames(1000, channels) / 8
    data = write(manifest(channels), [x], name, finish=False)
    assert data[4:8] == b"\xff" * 4
    (tmp_path / "pipe.wav").write_bytes(data)
    shape = () if channels == 1 else (channels,)
    request = Request(Input("x", "samples", "float32", shape, rate=16000.0))
    with open_source(str(tmp_path / "pipe.wav"), request) as source:
        parts = []
        while len(part := source.read(300)):
            parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts), x, atol=0 if name == "wav" else 1 / 65536)


def test_the_rate_is_that_of_the_output():
    assert soundfile.info(io.BytesIO(write(manifest(ratio=(3, 1)), [frames(30, 1)]))).samplerate == 48000


@pytest.mark.parametrize("spec", [manifest(rate=None), manifest(rate=16000.5), manifest(ratio=(1, 3))])
def test_a_rate_that_a_wav_cannot_have_is_refused(spec):
    with pytest.raises(UsageError, match="whole Hz"):
        write(spec, [])


def test_audio_is_wav_and_wav_is_audio():
    spec = manifest()
    audio, items = make_rows(spec, "audio"), ItemRows(spec)
    assert make_format(None, None, spec, audio).name == "wav"
    assert make_format("wav16", Path("x.wav"), spec, audio).name == "wav16"
    with pytest.raises(UsageError, match="written as wav, not csv"):
        make_format("csv", None, spec, audio)
    with pytest.raises(UsageError, match="pass --emit audio"):
        make_format(None, Path("x.wav"), spec, items)


def test_one_wav_holds_one_recording():
    spec = manifest()
    sink = make_format("wav", Path("x"), spec, AudioRows(spec))
    sink.begin()
    row = {"samples": np.zeros((3, 1), np.float32)}
    gap = {"record": "a", "gap": "dropped", "items": 1}
    assert len(sink.rows([{"record": "a"} | row, gap, {"record": "a"} | row])) == 24
    with pytest.raises(UsageError, match="b is another"):
        sink.rows([{"record": "b"} | row])


def test_sizes_beyond_four_gigabytes_stay_unknown(tmp_path):
    spec = manifest()
    sink = make_format("wav", Path("x"), spec, AudioRows(spec))
    with open(tmp_path / "long.wav", "w+b") as file:
        file.write(sink.begin())
        file.truncate(5 << 30)  # sparse
        sink.finish(file)
        file.seek(0)
        assert file.read(8) == b"RIFF\xff\xff\xff\xff"
