"""``streamssm run``: what is printed, byte for byte; options; errors; saved streams."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_tools import write_wav
from voice_toy import HOP, RATE, TOYS, recording

import streamssm

CHUNKS = ["7ms", "1s", "1", "80", "81", "100000"]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("emit", ["events", "items"])
def test_any_chunk_and_any_source_print_the_same_bytes(call, made, emit):
    expected = call("run", "voice.onnx", "speech.wav", "--emit", emit)
    assert expected.exit_code == 0
    assert expected.stdout_bytes
    for chunk in CHUNKS[:-4] if emit == "items" else CHUNKS:
        found = call("run", "voice.onnx", "speech.wav", "--emit", emit, "--chunk", chunk)
        assert found.stdout_bytes == expected.stdout_bytes, chunk
    raw = recording().tobytes()
    floats = (recording().astype("<f4") / 32768).tobytes()
    wav = (made / "speech.wav").read_bytes()
    for data, options in (
        (raw, ["s16le"]),
        (floats, ["f32le", "--chunk", "7ms"]),
        (wav, ["auto", "--chunk", "1s"]),
    ):
        found = call("run", "voice.onnx", "-", "--emit", emit, "--input-format", *options, stdin=data)
        assert found.stdout_bytes == expected.stdout_bytes, options
    soundfile.write(made / "speech.flac", recording(), RATE)
    assert call("run", "voice.onnx", "speech.flac", "--emit", emit).stdout_bytes == expected.stdout_bytes
    played = call("run", "voice.onnx", "file:speech.wav", "--emit", emit, "-o", "out.jsonl")
    assert not played.stdout_bytes
    assert (made / "out.jsonl").read_bytes() == expected.stdout_bytes


def test_events_by_default_and_the_last_one_is_cut(call):
    found = lines(call("run", "voice.onnx", "speech.wav").stdout)
    assert [event["event"] for event in found] == ["start", "end", "start", "end"]
    assert found[0].keys() == {"event", "label", "time", "index"}
    assert found[0]["time"] == pytest.approx(0.6, abs=0.05)
    assert found[0]["index"] == round(found[0]["time"] * RATE / HOP)
    assert found[-1] == {"event": "end", "label": "speech", "time": 2.99, "index": 299, "cut": True}


def test_items_are_the_numbers_of_the_model(call, made):
    model = streamssm.load(made / "voice.onnx")
    y = model.scan(recording().astype(np.float32) / 32768)
    found = lines(call("run", "voice.onnx", "speech.wav", "--emit", "items").stdout)
    assert [line["time"] for line in found] == [i / 100 for i in range(300)]
    np.testing.assert_array_equal(np.array([line["speech"] for line in found], np.float32), y[:, 0])


def toy_input(name: str, folder: Path) -> tuple[str, np.ndarray]:
    x = TOYS[name]().random(50, np.random.default_rng(3))
    path = folder / f"{name}.npy"
    np.save(path, x)
    return str(path), x


@pytest.mark.parametrize("name", TOYS)
def test_every_kind_of_model_prints_what_it_computes(call, made, name):
    source, x = toy_input(name, made)
    toy = TOYS[name]()
    expected = call("run", f"{name}.onnx", source)
    for chunk in ("1", "7", "13"):
        assert call("run", f"{name}.onnx", source, "--chunk", chunk).stdout_bytes == expected.stdout_bytes
    found = lines(expected.stdout)
    rate = toy.manifest.input.rate
    for output in toy.manifest.outputs:
        mine = [line for line in found if output.name in line]
        values = np.array([line[output.name] for line in mine])
        np.testing.assert_allclose(values, toy.reference(x)[output.name], atol=2e-5)
        if rate is not None:
            times = np.arange(len(mine)) * output.ratio[1] / output.ratio[0] / rate
            np.testing.assert_allclose([line["time"] for line in mine], times, atol=1e-6)
    keys = [line.get("time", line.get("index")) for line in found]
    assert keys == sorted(keys)


def test_outputs_that_start_together_share_a_line(call, made):
    source, _ = toy_input("pair", made)
    found = lines(call("run", "pair.onnx", source).stdout)
    assert [sorted(line) for line in found[:5]] == [
        ["same", "sums", "time"],
        *[["same", "time"]] * 3,
        ["same", "sums", "time"],
    ]


def test_text_on_standard_input_without_a_clock(call, made):
    found = lines(call("run", "tokens.onnx", "-", stdin=b"0\n3\n4\n").stdout)
    assert [line["index"] for line in found] == [0, 1, 2]


@pytest.mark.parametrize("emit", ["events", "items"])
@pytest.mark.parametrize("cut", [0, 1, 5281, 12345, 24000])
def test_a_saved_stream_continues_where_it_stopped(call, made, emit, cut):
    x = recording()
    run = ("run", "voice.onnx", "-", "--input-format", "s16le", "--emit", emit)
    whole = call(*run, stdin=x.tobytes()).stdout_bytes
    first = call(*run, "--save-state", "a.state", stdin=x[:cut].tobytes())
    assert first.exit_code == 0
    # from and to one file, and an empty stretch in between
    middle = call(*run, "--resume", "a.state", "--save-state", "a.state", "--chunk", "1s")
    assert middle.exit_code == 0
    rest = call(*run, "--resume", "a.state", stdin=x[cut:].tobytes())
    assert first.stdout_bytes + middle.stdout_bytes + rest.stdout_bytes == whole


def test_saved_items_of_several_ratios(call, made):
    source, x = toy_input("pair", made)
    whole = call("run", "pair.onnx", source).stdout_bytes
    np.save(made / "first.npy", x[:9])
    np.save(made / "rest.npy", x[9:])
    first = call("run", "pair.onnx", "first.npy", "--save-state", "p.state").stdout_bytes
    assert first + call("run", "pair.onnx", "rest.npy", "--resume", "p.state").stdout_bytes == whole


def test_report_and_stats_go_elsewhere(call, made):
    result = call("run", "voice.onnx", "speech.wav", "--stats", "stats.json", "--block", 160)
    assert "algorithmic latency 20 ms (block 20 + look-ahead 0), hop 10 ms" in result.stderr
    assert "real-time factor" in result.stderr
    stats = json.loads((made / "stats.json").read_text())
    assert stats["items"] == 24000
    assert stats["seconds"] == 3.0
    assert stats["lines"] == 4
    assert stats["pushes"] == 150
    assert stats["push_ms"]["p50"] <= stats["push_ms"]["max"]
    assert stats["state_bytes"] == 4
    assert call("run", "voice.onnx", "speech.wav", "-q").stderr == ""


def test_sim_is_paced_and_prints_the_same(call, made):
    write_wav(made / "short.wav", recording(0.5))
    expected = call("run", "voice.onnx", "short.wav")
    found = call("run", "voice.onnx", "sim:short.wav", "--stats", "sim.json")
    assert found.stdout_bytes == expected.stdout_bytes
    assert json.loads((made / "sim.json").read_text())["measured_from"] == "due time"
    assert "from due time" in found.stderr


def test_nonfinite_input(call, refused, made):
    x = recording().astype("<f4") / 32768
    x[1000] = np.nan
    run = ("run", "voice.onnx", "-", "--input-format", "f32le", "--emit", "items")
    line = refused(*run, code=1, stdin=x.tobytes())
    assert "chunk at item 960" in line
    assert "nan" in line
    assert "--allow-nonfinite" in line
    passed = call(*run, "--allow-nonfinite", stdin=x.tobytes())
    assert passed.exit_code == 0
    assert lines(passed.stdout)[12]["speech"] is None
    silent = [row for row in lines(passed.stdout) if row["speech"] is None]
    assert f"{len(silent)} items of voice are NaN" in passed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("voice.onnx", "missing.wav"), 1, "missing.wav does not exist"),
        (("missing.onnx", "speech.wav"), 3, "missing.onnx"),
        (("speech.wav", "speech.wav"), 3, "not an ONNX file"),
        (("nothing", "speech.wav"), 3, "no built-in model"),
        (("voice.onnx",), 2, "Missing argument 'SOURCE'"),
        (("voice.onnx", "speech.wav", "--frobnicate"), 2, "No such option"),
        (("voice.onnx", "speech.wav", "--block", "7"), 2, "not a positive multiple of the hop"),
        (("voice.onnx", "speech.wav", "--chunk", "7.5"), 2, "not an amount"),
        (("voice.onnx", "speech.wav", "--chunk", "0"), 2, "not an amount"),
        (("voice.onnx", "speech.wav", "--chunk", "0.01ms"), 2, "less than one item"),
        (("tokens.onnx", "-", "--chunk", "1s"), 2, "no clock"),
        (("ema.onnx", "-", "--emit", "events"), 2, "no event rule"),
        (("voice.onnx", "speech.wav", "--backend", "abacus"), 2, "abacus"),
        (("voice.onnx", "speech.wav", "-o", "no/such/folder/x"), 1, "cannot be written"),
        (("voice.onnx", "speech.wav", "-o", "."), 1, "cannot be written"),
        (("voice.onnx", "speech.wav", "--stats", "no/folder/x"), 1, "cannot be written"),
        (("voice.onnx", "speech.wav", "--save-state", "no/folder/x"), 1, "cannot be written"),
        (("voice.onnx", "speech.wav", "-o", "./speech.wav"), 2, "written over"),
        (("voice.onnx", "sim:speech.wav", "--stats", "speech.wav"), 2, "written over"),
        (("voice.onnx", "speech.wav", "--save-state", "voice.onnx"), 2, "written over"),
        (("voice.onnx", "speech.wav", "--stats", "x", "-o", "x"), 2, "written over"),
        (("voice.onnx", "speech.wav", "--resume", "missing.state"), 1, "missing.state"),
        (("voice.onnx", "speech.wav", "--resume", "speech.wav"), 1, "snapshot"),
        (("voice.onnx", "speech.wav", "--resume", "speech.wav"), 1, "--resume speech.wav: "),
        (("voice.onnx", "speech.wav", "-o", "/dev/full"), 1, "No space left"),
        (("voice.onnx", "speech.wav", "--stats", "/dev/full"), 1, "cannot be replaced"),
        (("voice.onnx", "speech.wav", "--save-state", "/dev/full"), 1, "cannot be replaced"),
        (("voice.onnx", "speech.wav", "--block", str(80 << 50)), 1, "not enough memory"),
        (("voice.onnx", "speech.wav", "--rate", "nan"), 2, "not a finite number"),
        (("voice.onnx", "speech.raw"), 1, "pass --input-format"),
    ],
)
def test_errors_are_one_line_with_the_documented_code(refused, made, arguments, code, message):
    (made / "speech.raw").write_bytes(recording(0.1).tobytes())
    assert message in refused("run", *arguments, "-q", code=code)


def test_a_refused_output_leaves_the_files_alone(refused, made):
    before = (made / "speech.wav").read_bytes()
    refused("run", "voice.onnx", "speech.wav", "-o", "speech.wav", code=2)
    assert (made / "speech.wav").read_bytes() == before


def test_saved_streams_are_refused_where_they_do_not_belong(call, refused, made):
    call("run", "voice.onnx", "speech.wav", "--save-state", "v.state")
    assert "another --emit" in refused(
        "run", "voice.onnx", "speech.wav", "--resume", "v.state", "--emit", "items", code=1
    )
    toy_input("ema", made)
    assert "voice" in refused("run", "ema.onnx", "ema.npy", "--resume", "v.state", code=1)
    streamssm.load(made / "voice.onnx").stream().save(made / "own.state")
    assert "saved by a program" in refused("run", "voice.onnx", "speech.wav", "--resume", "own.state", code=1)


def test_an_unexpected_error_is_one_line_too(refused, monkeypatch):
    monkeypatch.setattr(streamssm, "load", lambda *a, **k: {}["surprise"])
    assert "unexpected KeyError: 'surprise'; set STREAMSSM_DEBUG=1" in refused("run", "x.onnx", "-", code=1)


def test_labels_that_collide_are_told_apart():
    from streamssm.manifest import Input, Manifest, Output
    from streamssm.rows import ItemRows
    from streamssm.sinks.jsonl import JsonLines

    outputs = (
        Output("a", "probability", (2,), (1, 1), ("time", "x")),
        Output("b", "probability", (), (1, 1), ()),
    )
    manifest = Manifest(1, "m", "0" * 64, "t", Input("i", "features", "float32", rate=1.0), outputs, (), 1)
    (row,) = ItemRows(manifest).push(
        {"a": np.array([[1, 0.1]], np.float32), "b": np.array([np.inf], np.float32)}
    )
    assert json.loads(JsonLines().rows([row])) == {"time": 0.0, "a.time": 1.0, "a.x": 0.1, "b": None}
