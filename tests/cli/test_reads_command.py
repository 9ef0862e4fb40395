"""``streamssm run`` on reads, folders, tables and pipes of audio, and what it says when they are bad."""

import json
import os
import signal
import subprocess

import numpy as np
import pytest
import soxr
from cli_tools import PROGRAM, write_wav
from reads_toy import reads_toy
from voice_toy import RATE, recording

from streamssm import load
from streamssm.errors import SnapshotError, UsageError
from streamssm.rows.decisions import DecisionRows

pysam = pytest.importorskip("pysam")

RICH, POOR, EVEN = "GCGCGGCCGC" * 4, "ATTATAATAT" * 4, "AGCTAGCT" * 5
FASTQ = "".join(
    f"@{n} runid=1\n{s}\n+\n{'I' * len(s)}\n" for n, s in zip("abc", (RICH, POOR, EVEN), strict=True)
)


@pytest.fixture
def model(made):
    path = made / "reads.onnx"
    if not path.exists():
        reads_toy().write(made)
    return path


def rows_of(result) -> list[dict]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def first_base(letters: str, threshold: float) -> int:
    """After how many bases the toy is sure, computed without it."""
    level = 0.0
    for place, letter in enumerate(letters, 1):
        level = 0.9 * level + 0.1 * (4 if letter in "GC" else -4)
        if max(level, -level) >= np.log(threshold / (1 - threshold)) / 2:
            return place
    return 0


@pytest.mark.parametrize("chunk", ["1", "3", "100"])
def test_a_line_for_each_read_with_the_base_that_decided(call, model, tmp_path, chunk):
    path = tmp_path / "reads.fastq"
    path.write_text(FASTQ)
    rows = rows_of(call("run", model, path, "--decide", "0.9", "--chunk", chunk, "-q", "--block", "1"))
    assert [list(row) for row in rows] == [["record", "label", "probability", "index", "decided"]] * 3
    assert [(row["record"], row["label"], row["decided"]) for row in rows] == [
        ("a", "rich", True),
        ("b", "poor", True),
        ("c", "poor", False),
    ]
    assert [row["index"] for row in rows] == [first_base(RICH, 0.9), first_base(POOR, 0.9), len(EVEN)]
    assert all(row["probability"] >= 0.9 for row in rows[:2])
    again = rows_of(
        call(
            "run", model, "-", "--decide", "0.9", "-q", "--chunk", chunk, "--block", "1", stdin=FASTQ.encode()
        )
    )
    assert again == rows


def test_without_decide_every_base_has_a_row_with_its_read(call, model, tmp_path):
    (tmp_path / "a.fasta").write_text(">x\nGCAT\n>empty\n>y\nA\n")
    rows = rows_of(call("run", model, tmp_path / "a.fasta", "-q"))
    assert [(row["record"], row["index"]) for row in rows] == [
        ("x", 0),
        ("x", 1),
        ("x", 2),
        ("x", 3),
        ("y", 0),
    ]
    assert rows[0]["rich"] == rows[1]["rich"] / 1.9 == pytest.approx(0.4)
    decided = rows_of(call("run", model, tmp_path / "a.fasta", "-q", "--decide", "0.99"))
    assert [(row["record"], row["label"], row["index"]) for row in decided] == [
        ("x", "poor", 4),
        ("empty", None, 0),
        ("y", "poor", 1),
    ]


def test_reads_come_out_while_the_pipe_is_open(model):
    program = subprocess.Popen(
        [*PROGRAM, "run", model, "-", "--decide", "0.9", "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        for number, letters in enumerate((RICH, POOR)):
            program.stdin.write(f"@{number}\n{letters}\n+\n{'I' * len(letters)}\n".encode())
            program.stdin.flush()
            row = json.loads(program.stdout.readline())
            assert (row["record"], row["decided"]) == (str(number), True)
    finally:
        program.stdin.close()
        assert program.wait(20) == 0
        program.stdout.close()


def outputs_of(*values: float) -> dict[str, np.ndarray]:
    return {"logits": np.array(values, np.float32).reshape(-1, 2)}


def test_decisions_do_not_depend_on_the_split_and_can_be_saved(model):
    manifest = load(model).manifest
    levels = np.random.default_rng(3).normal(0, 0.8, (50, 2)).astype(np.float32)
    for threshold in (0.8, 0.999):
        expected = None
        for size in (1, 7, 50):
            rows, found = DecisionRows(manifest, threshold), []
            for start in range(0, 50, size):
                part = levels[start : start + size]
                rows.count(len(part))
                found += rows.push({"logits": part})
                twin = DecisionRows(manifest, threshold)
                twin.restore(json.loads(json.dumps(rows.state())))
                rows = twin
            found += rows.flush()
            expected = expected or found
            assert found == expected
            assert len(found) == 1
        assert expected[0]["decided"] == (threshold == 0.8)
        assert rows.flush() == [{"label": None, "probability": None, "index": 0, "decided": False}]
    with pytest.raises(SnapshotError, match="without --decide"):
        rows.restore({"index": 3})


def test_an_answer_that_lacks_input_decides_nothing():
    manifest = load("host").manifest  # one answer for 100 bases; the end of a read is padded with N

    def row_of(bases: int, *human: float) -> dict:
        rows = DecisionRows(manifest, 0.9)
        rows.count(bases)
        found = rows.push({"host": np.array(human, np.float32).reshape(-1, 1)}) + rows.flush()
        assert len(found) == 1
        return found[0]

    assert row_of(134, 0.75, 0.01) == {"label": "human", "probability": 0.75, "index": 134, "decided": False}
    assert row_of(60, 0.01) == {"label": None, "probability": None, "index": 60, "decided": False}
    assert row_of(200, 0.75, 0.95) == {"label": "human", "probability": 0.95, "index": 200, "decided": True}


def test_a_single_column_is_a_class_and_its_opposite(made):
    manifest = load(made / "voice.onnx").manifest
    rows = DecisionRows(manifest, 0.9)
    assert rows.push({"voice": np.array([[0.5], [0.05]], np.float32)}) == [
        {"label": "not speech", "probability": 0.95, "index": 160, "decided": True}
    ]
    assert rows.decided
    assert rows.push({"voice": np.array([[1.0]], np.float32)}) == rows.flush() == []
    for threshold in (0.5, 1.1, -1.0):
        with pytest.raises(UsageError, match=r"give a probability above 0\.5"):
            DecisionRows(manifest, threshold)
    with pytest.raises(
        UsageError, match="--decide needs one output of probabilities or logits, ema has none"
    ):
        DecisionRows(load(made / "ema.onnx").manifest, 0.9)


# audio


@pytest.fixture(scope="module")
def loud(made):
    """The recording at 44.1 kHz, in two channels that sum to it."""
    x = soxr.resample(recording().astype(np.float32) / 32768, RATE, 44100)
    both = (np.stack([1.5 * x, 0.5 * x], 1) * 32768).clip(-32768, 32767).astype("<i2")
    write_wav(made / "loud.wav", both, 44100)
    return both


def test_a_pipe_of_raw_samples_gives_the_events_of_the_file(call, loud):
    file = call("run", "voice.onnx", "loud.wav")
    pipe = call(
        "run", "voice.onnx", "-", "--input-format", "s16le", "--rate", "44100", "--channels", "2",
        stdin=loud.tobytes(),
    )  # fmt: skip
    assert len(rows_of(file)) == 4
    assert pipe.stdout == file.stdout
    assert "44100 Hz is converted to the model's 8000 Hz" in pipe.stderr
    assert "2 channels are mixed" in file.stderr
    plain = rows_of(call("run", "voice.onnx", "speech.wav", "-q"))
    for a, b in zip(plain, rows_of(file), strict=True):
        assert a["event"] == b["event"]
        assert abs(a["time"] - b["time"]) <= 0.02


def test_a_folder_gives_a_record_for_each_file(call, loud, made, tmp_path):
    (tmp_path / "talks").mkdir()
    for name in ("speech.wav", "loud.wav"):
        (tmp_path / "talks" / name).symlink_to(made / name)
    rows = rows_of(call("run", "voice.onnx", tmp_path / "talks", "-q"))
    assert [row["record"] for row in rows] == ["loud.wav"] * 4 + ["speech.wav"] * 4
    for name in ("speech.wav", "loud.wav"):
        alone = rows_of(call("run", "voice.onnx", name, "-q"))
        assert [{"record": name, **row} for row in alone] == [row for row in rows if row["record"] == name]


def test_a_truncated_pipe_gives_its_events_and_then_the_error(call, made):
    data = (made / "speech.wav").read_bytes()
    result = call("run", "voice.onnx", "-", "-q", stdin=data[: len(data) // 2])
    assert result.exit_code == 1
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events == ["start", "end"]
    assert "standard input is truncated: its header announces" in result.stderr
    allowed = call("run", "voice.onnx", "-", "--allow-truncated", stdin=data[: len(data) // 2])
    assert allowed.exit_code == 0
    assert allowed.stdout == result.stdout
    assert "taken as it is" in allowed.stderr


# rows


def table(values: np.ndarray, header: str = "") -> str:
    return header + "".join(",".join(map(str, row)) + "\n" for row in values)


def test_json_lines_give_the_rows_of_the_table(call, made, tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 2)).round(3)
    (tmp_path / "x.csv").write_text(table(values, "b,a\n"))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"b": b, "a": a, "t": 0}) + "\n" for b, a in values))
    by_name = [
        call("run", "ema.onnx", tmp_path / f"x.{kind}", "-q", "--columns", "a,b") for kind in ("csv", "jsonl")
    ]
    assert by_name[0].stdout == by_name[1].stdout
    np.save(tmp_path / "x.npy", np.ascontiguousarray(values[:, ::-1]).astype(np.float32))
    assert rows_of(by_name[0]) == rows_of(call("run", "ema.onnx", tmp_path / "x.npy", "-q"))


def test_gaps_keep_the_times_true(call, tmp_path):
    rows = [f"{n / 50},{n},{-n}" for n in range(20) if n not in (5, 6, 7)]
    rows.insert(10, "12:00 battery low")
    (tmp_path / "x.csv").write_text("\n".join(["t,a,b", *rows]))
    options = ("run", "ema.onnx", tmp_path / "x.csv", "-q", "--time-column", "t", "--on-bad", "skip")
    found = rows_of(call(*options))
    assert [row for row in found if "gap" in row] == [
        {"gap": "missing", "items": 3, "seconds": None, "time": 0.1},
        {"gap": "invalid", "items": 0, "seconds": None, "time": 0.26},
    ]
    items = [row for row in found if "y" in row]
    assert [row["time"] for row in items] == [round(n / 50, 6) for n in range(20)]
    skipped = [row for row in rows_of(call(*options, "--on-gap", "skip")) if "y" in row]
    assert len(skipped) == 17


def test_bad_input_has_a_stated_outcome(refused, call, tmp_path):
    bad = tmp_path / "x.csv"
    bad.write_bytes(b"1,2\n\x00\xff\xfe binary\n3,4\n")
    assert "line 2: " in refused("run", "ema.onnx", bad, code=1)
    assert "--on-bad skip" in refused("run", "ema.onnx", bad, code=1)
    rows = rows_of(call("run", "ema.onnx", bad, "-q", "--on-bad", "skip", "--block", "1"))
    assert [row.get("gap") for row in rows] == [None, "invalid", None, None]
    missing = b'{"a": 1, "b": 2}\n{"a": 1}\n{"a": 3, "b": 4}\n'
    assert "column 'b' is missing" in refused(
        "run", "ema.onnx", "-", "--columns", "a,b", code=1, stdin=missing
    )
    huge = b"1,2\n" + b"9" * (100 << 20) + b"\n3,4\n"
    assert "longer than 1 MiB" in refused("run", "ema.onnx", "-", code=1, stdin=huge)
    rows = rows_of(call("run", "ema.onnx", "-", "-q", "--on-bad", "skip", "--block", "1", stdin=huge))
    assert [row.get("gap") for row in rows] == [None, "invalid", None, None]


def test_tail_runs_until_a_signal(made, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("1,2\n3,4\n")
    program = subprocess.Popen(
        [*PROGRAM, "run", "ema.onnx", f"tail:{path}", "-q", "--block", "1"],
        cwd=made,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        found = [program.stdout.readline() for _ in range(2)]
        with path.open("a") as file:
            file.write("5,6\n")
        found.append(program.stdout.readline())
        os.rename(path, tmp_path / "log.1")
        path.write_text("7,8\n")
        found.append(program.stdout.readline())
    finally:
        program.send_signal(signal.SIGTERM)
        rest, _ = program.communicate(timeout=20)
    assert program.returncode == 130
    assert rest == ""
    path.write_text("1,2\n3,4\n5,6\n7,8\n")
    whole = subprocess.run(
        [*PROGRAM, "run", "ema.onnx", path, "-q", "--block", "1"], cwd=made, stdout=subprocess.PIPE, text=True
    )
    assert "".join(found) == whole.stdout
