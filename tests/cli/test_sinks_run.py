"""``streamssm run`` with every format: to a file, to a pipe, resumed, refused."""

import io
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_tools import write_wav
from sink_tools import read_csv, read_jsonl, read_labels, read_parquet, read_rttm, read_srt, read_vtt, spans
from toy_models import EMA, Toy, manifest, state
from voice_toy import RATE, recording

from language_toy import LanguageToy  # isort: skip; voice_toy put its folder on the path

from streamssm.manifest import Input, Output

READERS = {
    "csv": read_csv,
    "parquet": read_parquet,
    "rttm": lambda data: read_rttm(data)[0],
    "vtt": lambda data: read_vtt(data)[0],
    "srt": read_srt,
    "txt": read_labels,
}


def smoother(channels: int = 1) -> Toy:
    """A model whose output is sound: an exponential moving average of its input."""
    shape = () if channels == 1 else (channels,)
    head = "float[B, T]" if channels == 1 else f"float[B, T, {channels}]"
    widen = (
        """axis = Constant <value = int64[1] {2}> ()
      wide = Unsqueeze (x, axis)"""
        if channels == 1
        else "wide = Identity (x)"
    )
    narrow = "y = Squeeze (smooth, axis)" if channels == 1 else "y = Identity (smooth)"
    graph = f"""smooth{channels} ({head} x, float[B, {channels}] h) =>
      ({head} y, float[B, {channels}] next_h) {{
      {widen}
    {EMA.format(x="wide", h="h", y="smooth", d=channels)}
      next_h = Identity (smooth_last)
      {narrow}
    }}"""
    spec = Input("x", "samples", "float32", shape, rate=float(RATE))
    outputs = [Output("y", "samples", shape)]
    return Toy(
        graph, manifest(f"smooth{channels}", spec, outputs, [state("h", channels)], block=80), lambda x: {}
    )


@pytest.fixture(scope="module")
def events(made):
    """The rows that the other formats must agree with."""
    from click.testing import CliRunner

    from streamssm.cli import cli

    found = CliRunner().invoke(cli, ["run", str(made / "voice.onnx"), str(made / "speech.wav"), "-q"])
    return read_jsonl(found.stdout_bytes)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("chunk", ["7ms", "1s"])
def test_every_format_on_a_file_and_on_a_pipe(call, made, events, name, chunk):
    to_file = call("run", "voice.onnx", "speech.wav", "-o", f"out.{name}", "--chunk", chunk)
    assert (to_file.exit_code, to_file.stdout_bytes) == (0, b""), to_file.output
    data = (made / f"out.{name}").read_bytes()
    piped = call("run", "voice.onnx", "speech.wav", "--format", name, "--chunk", chunk)
    assert piped.stdout_bytes == data
    found = READERS[name](data)
    if name in ("csv", "parquet"):
        assert found == events
    else:
        assert [(s.label, s.start, s.end) for s in found] == [
            (s.label, s.start, s.end) for s in spans(events)
        ]
    if name == "rttm":
        assert {s.record for s in found} == {"speech"}


@pytest.mark.parametrize("name", ["csv", "txt", "parquet"])
def test_items_in_every_table(call, made, name):
    run = ("run", "voice.onnx", "speech.wav", "--emit", "items", "-q")
    plain = read_jsonl(call(*run).stdout_bytes)
    data = call(*run, "--format", name).stdout_bytes
    if name == "txt":
        found = [dict(zip(("time", "speech"), row, strict=True)) for row in np.loadtxt(io.BytesIO(data))]
    else:
        found = READERS[name](data)
    assert [row["time"] for row in found] == [row["time"] for row in plain]
    values = [np.array([row["speech"] for row in rows], np.float32) for rows in (found, plain)]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("name", ["csv", "rttm", "vtt", "srt", "txt", "jsonl"])
def test_the_event_that_is_open_when_a_stream_is_saved_is_in_the_next_output(call, made, name):
    x = recording()
    cut = 9000  # in the middle of an event
    raw = ("run", "voice.onnx", "-", "--input-format", "s16le", "--format", name, "-q")
    whole = call(*raw, stdin=x.tobytes()).stdout_bytes
    first = call(*raw, "--save-state", "f.state", "-o", "first.out", stdin=x[:cut].tobytes())
    assert first.exit_code == 0, first.output
    rest = call(*raw, "--resume", "f.state", "-o", "rest.out", stdin=x[cut:].tobytes())
    assert rest.exit_code == 0, rest.output
    reader = {**READERS, "jsonl": read_jsonl}[name]
    parts = [reader((made / f"{part}.out").read_bytes()) for part in ("first", "rest")]
    assert parts[0] + parts[1] == reader(whole)
    other = "csv" if name != "csv" else "vtt"
    refused = call(*raw[:-3], "--format", other, "--resume", "f.state", stdin=b"")
    assert refused.exit_code == 1
    assert "use the same --format" in refused.stderr


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_in_sound_out(call, made, channels):
    smoother(channels).write(made)
    x = np.stack([recording(seed=seed) for seed in range(channels)], 1).astype(np.float32) / 32768
    soundfile.write(made / "in.wav", x, RATE, subtype="FLOAT")
    model, items = f"smooth{channels}.onnx", ("--emit", "items", "-q", "--format", "csv")
    done = call("run", model, "in.wav", "--emit", "audio", "-o", "clean.wav", "--chunk", "7ms")
    assert done.exit_code == 0, done.output
    found, rate = soundfile.read(made / "clean.wav", dtype="float32", always_2d=True)
    lines = call("run", model, "in.wav", *items).stdout.splitlines()[1:]
    expected = np.array([line.split(",")[1 : 1 + channels] for line in lines]).astype(np.float32)
    assert rate == RATE
    assert found.tobytes() == expected.tobytes()
    piped = call("run", model, "in.wav", "--emit", "audio").stdout_bytes
    assert piped[58:] == (made / "clean.wav").read_bytes()[58:]
    again = call("run", model, "-", "--emit", "audio", "--format", "wav16", "-o", "c16.wav", stdin=piped)
    assert again.exit_code == 0, again.output
    assert soundfile.info(made / "c16.wav").subtype == "PCM_16"
    assert soundfile.info(made / "c16.wav").frames == len(x)


def test_two_recordings_do_not_go_into_one_wav(call, made):
    smoother().write(made)
    folder = made / "two"
    folder.mkdir(exist_ok=True)
    for name in ("a.wav", "b.wav"):
        write_wav(folder / name, recording(0.1))
    found = call("run", "smooth1.onnx", "two", "--emit", "audio", "-o", "two.wav")
    assert found.exit_code == 2
    assert "b.wav is another" in found.stderr


def test_a_folder_of_recordings(call, made, events):
    folder = made / "calls"
    folder.mkdir(exist_ok=True)
    for name in ("a.wav", "b b.wav"):
        write_wav(folder / name, recording())
    rows = read_jsonl(call("run", "voice.onnx", "calls", "-q").stdout_bytes)
    assert rows == [{"record": name} | row for name in ("a.wav", "b b.wav") for row in events]
    for name in ("csv", "parquet"):
        assert READERS[name](call("run", "voice.onnx", "calls", "-q", "--format", name).stdout_bytes) == rows
    lines, _ = read_rttm(call("run", "voice.onnx", "calls", "-q", "--format", "rttm").stdout_bytes)
    assert [line.record for line in lines] == ["a", "a", "b_b", "b_b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--emit", "items", "--format", "rttm"), "rttm holds events"),
        (("--emit", "items", "-o", "x.vtt"), "vtt holds events"),
        (("-o", "x.wav"), "wav holds samples, not events"),
        (("--emit", "audio"), "voice gives no samples"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_any_work(refused, made, options, message):
    (made / "x.vtt").unlink(missing_ok=True)
    assert message in refused("run", "voice.onnx", "speech.wav", *options, code=2)
    assert not (made / "x.vtt").exists()


def test_a_run_that_was_killed_goes_on_in_other_formats_too(call, process, made):
    smoother().write(made)
    write_wav(made / "long.wav", recording(12.0))
    models = {"srt": "voice.onnx", "wav": "smooth1.onnx"}
    runs = {
        name: ("run", model, "long.wav", "-o", f"killed.{name}", "--chunk", "1ms", "-q")
        for name, model in models.items()
    }
    expected = {}
    for name, run in runs.items():
        assert call(*run).exit_code == 0
        expected[name] = (made / f"killed.{name}").read_bytes()
    for _ in range(2):
        for name, run in runs.items():
            state = made / f"{name}.state"
            before = read_stamp(state)
            options = ("--save-state", state, "--save-every", "0.02", "--resume", state)
            running = process(*run, *options)
            while running.poll() is None and read_stamp(state) == before:
                time.sleep(0.002)
            running.kill()
            _, err = running.communicate()
            assert running.returncode in (0, -signal.SIGKILL), err
    for name, run in runs.items():
        assert call(*run, "--resume", f"{name}.state").exit_code == 0
        assert (made / f"killed.{name}").read_bytes() == expected[name], name


def read_stamp(path: Path) -> int:
    """When a file was last replaced."""
    return path.stat().st_mtime_ns if path.exists() else 0


def test_parquet_cannot_be_continued_where_it_was_cut(refused):
    options = ("-o", "x.parquet", "--save-state", "p.state", "--save-every", "1")
    assert "parquet" in refused("run", "voice.onnx", "speech.wav", *options, code=2)


@pytest.fixture(scope="module")
def language(made):
    """A model of bytes, and a text with all that a table must not stumble over."""
    LanguageToy(256, block=4).write(made / "bytes.onnx")
    (made / "text.txt").write_bytes('a,"b" 🙂\n\tc'.encode())
    return ("run", "bytes.onnx", "text.txt", "-q")


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_scored_tokens_in_every_table(call, language, name):
    plain = read_jsonl(call(*language).stdout_bytes)
    found = READERS[name](call(*language, "--format", name).stdout_bytes)
    if name == "csv":  # what is missing and what is empty look alike to the reader
        plain = [{key: value for key, value in row.items() if value != ""} for row in plain]
    assert found == [{key: value for key, value in row.items() if value is not None} for row in plain]


def test_text_is_the_text(call, refused, language):
    assert call(*language, "--format", "txt").stdout_bytes == 'a,"b" 🙂\n\tc'.encode()
    drawn = (*language, "--generate", "20", "--seed", "3")
    text = call(*drawn, "--emit", "text")
    assert call(*drawn, "--format", "txt").stdout_bytes == text.stdout_bytes
    assert (
        call(*drawn, "--format", "csv")
        .stdout.splitlines()[0]
        .endswith("generated,stopped,rest,gap,items,seconds")
    )
    assert "--emit text writes the text alone" in refused(*drawn, "--emit", "text", "--format", "csv", code=2)


def test_each_read_is_a_text_of_its_own(call, made):
    LanguageToy(5, "nucleotides").write(made / "dna.onnx")
    (made / "one.fasta").write_bytes(b">one\nACGTN\n")
    (made / "two.fasta").write_bytes(b">zero\nGG\n>one\nACG\nTN\n")
    one, two = (
        read_jsonl(call("run", "dna.onnx", f"{name}.fasta", "-q").stdout_bytes) for name in ("one", "two")
    )
    assert one[-1]["tokens"] == 5
    assert [row for row in two if row["record"] == "one"] == one
