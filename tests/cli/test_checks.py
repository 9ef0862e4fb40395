"""The checks pass on honest models and each catches its own kind of lie."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from voice_toy import TOYS, voice_toy

import streamssm
from streamssm.checks import CHECKS, run_checks
from streamssm.cli import cli
from streamssm.draw import default_items, draw_input

FEW = {"items": 120, "splits": 10}


def verdicts(model, **options) -> dict[str, str]:
    return {check.name: check.verdict for check in run_checks(model, **(FEW | options))}


@pytest.mark.parametrize("name", TOYS)
def test_honest_models_pass(made, name):
    found = verdicts(streamssm.load(made / f"{name}.onnx"))
    assert list(found) == ["integrity", *CHECKS]
    assert found.pop("golden vectors") == "skip"
    assert set(found.values()) == {"pass"}


@pytest.mark.parametrize("name", ["pair", "ahead"])
def test_golden_vectors_are_those_of_one_call(tmp_path, name):
    """Recorded with the warm-up that a stream drops, without what a flush adds."""
    toy = TOYS[name]()
    x = toy.random(16, np.random.default_rng(0))
    stream = streamssm.load(toy.write(tmp_path)).stream(block=16)
    stream._lane.x[0] = x
    stream._lane.step()
    toy.golden = {"x": x}
    for output, y in zip(toy.manifest.outputs, stream._lane.y, strict=True):
        toy.golden[f"y.{output.name}"] = y[0].copy()
    assert verdicts(streamssm.load(toy.write(tmp_path)))["golden vectors"] == "pass"
    toy.golden[f"y.{toy.manifest.outputs[0].name}"][-1] += 0.01
    assert verdicts(streamssm.load(toy.write(tmp_path)))["golden vectors"] == "fail"


class Stream:
    """A stream that tells one kind of lie."""

    def __init__(self, inner, lie: str, rows: int | None = None):
        self.inner, self.lie, self.rows, self.pushed = inner, lie, rows, 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def push(self, chunk):
        if self.lie == "accepts NaN":
            chunk = np.nan_to_num(chunk)
        if self.lie == "uses a part of what it refuses" and np.isnan(chunk).any():
            self.inner.push(chunk[:1])
        y = self.inner.push(chunk)
        self.pushed += 1
        if self.lie == "a push costs an item" and self.pushed == 3:
            return y[1:]
        if self.lie == "depends on the push" and len(chunk) == 1:
            return y + np.float32(1e-6)
        if self.lie == "empty pushes count" and not len(chunk):
            self.inner.push(np.zeros((1, 2), np.float32))
        return y * np.float32(1.01) if self.lie == "rows differ" and self.rows == 3 else y

    def reset(self):
        if self.lie == "reset forgets to":
            state = self.inner.state()
            self.inner.reset()
            self.inner._lane.state[0][...] = state.states[0]
        else:
            self.inner.reset()

    def fork(self):
        return self if self.lie == "fork shares" else Stream(self.inner.fork(), self.lie)

    def snapshot(self):
        saved = self.inner.snapshot()
        if self.lie == "snapshot disturbs":
            self.inner._lane.state[0][...] *= np.float32(1.1)
        return saved


class Model:
    """An honest model whose streams lie."""

    def __init__(self, inner, lie: str):
        self.inner, self.lie = inner, lie

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def stream(self, block=None, batch=None):
        return Stream(self.inner.stream(block=block, batch=batch), self.lie, batch)

    def scan(self, x, block=None):
        y = self.inner.scan(x, block=block)
        return y + np.float32(0.01) if self.lie == "depends on the block" and block == 1 else y

    def resume(self, saved):
        stream = self.inner.resume(saved)
        if self.lie == "resume loses state":
            stream._lane.state[0][...] = 0
        return Stream(stream, self.lie)


@pytest.mark.parametrize(
    ("lie", "caught_by"),
    [
        ("honest", None),
        ("a push costs an item", "splits"),
        ("depends on the push", "splits"),
        ("empty pushes count", "empty pushes"),
        ("depends on the block", "block sizes"),
        ("reset forgets to", "reset"),
        ("resume loses state", "snapshot"),
        ("snapshot disturbs", "snapshot"),
        ("fork shares", "fork"),
        ("rows differ", "batch"),
        ("accepts NaN", "bad input"),
        ("uses a part of what it refuses", "bad input"),
    ],
)
def test_each_lie_is_caught(made, lie, caught_by):
    found = verdicts(Model(streamssm.load(made / "ema.onnx"), lie))
    if caught_by is None:
        assert "fail" not in found.values()
    else:
        assert found[caught_by] == "fail"


def test_the_same_seed_draws_the_same_cases(made):
    model = streamssm.load(made / "ema.onnx")
    first, again, other = (list(run_checks(model, seed=seed, **FEW)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", TOYS)
def test_drawn_input_suits_the_model(made, name):
    model = streamssm.load(made / f"{name}.onnx")
    x = draw_input(model.manifest, 500, np.random.default_rng(0))
    model.scan(x)
    assert default_items(model.manifest) >= 256
    if model.manifest.input.kind == "samples":
        assert 0.2 < np.abs(x).max() <= 1.0


def test_check_prints_a_table_and_a_verdict(call):
    found = call("check", "voice.onnx", "--seconds", "0.2", "--splits", "5")
    assert found.exit_code == 0
    assert found.stdout.splitlines()[-1] == "PASS: voice, seed 0"
    assert all(name in found.stdout for name in CHECKS)
    assert found.stderr == ""


def test_check_as_json(call):
    found = json.loads(call("check", "ema.onnx", "--items", "50", "--splits", "5", "--json").stdout)
    assert found["verdict"] == "PASS"
    assert [check["name"] for check in found["checks"]] == ["integrity", *CHECKS]


def test_a_failed_check_exits_4(made, monkeypatch):
    monkeypatch.setattr(streamssm, "load", lambda *a, **k: Model(LOAD(made / "ema.onnx"), "fork shares"))
    found = CliRunner().invoke(cli, ["check", "ema.onnx", "--items", "50", "--splits", "5"])
    assert found.exit_code == 4
    assert found.stdout.splitlines()[-1] == "FAIL: ema, seed 0"
    assert found.stderr == "error: 1 of 10 checks failed: fork\n"


LOAD = streamssm.load


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_exits_3_before_any_check(refused, made, place):
    data = bytearray(voice_toy().data())
    data[int(place * len(data))] ^= 1
    (made / "damaged.onnx").write_bytes(data)
    for command in (["check"], ["info"], ["bench"], ["run"]):
        source = ["speech.wav"] if command == ["run"] else []
        refused(*command, "damaged.onnx", *source, code=3)


def test_options_of_check(refused):
    assert "give one" in refused("check", "voice.onnx", "--items", 5, "--seconds", 1, code=2)
    assert "no clock" in refused("check", "tokens.onnx", "--seconds", 1, code=2)
    assert "multiple of the hop" in refused("check", "voice.onnx", "--block", 3, code=2)


def test_bench(call):
    found = json.loads(call("bench", "voice.onnx", "--seconds", "0.5", "--json").stdout)
    assert found["items"] == 4000
    difference = found["push_us"]["p50"] - found["run_us"]["p50"]
    assert found["overhead_us"] == pytest.approx(difference, abs=20)
    assert found["memory_bytes"]["process"] > 0
    table = call("bench", "tokens.onnx", "--items", "100", "--block", "10")
    assert "overhead of a push" in table.stdout
    assert "real-time" not in table.stdout


def test_bench_of_pools(call, refused):
    arguments = ("bench", "voice.onnx", "--streams", "1,3", "--items", "800", "--block", "160")
    pools = json.loads(call(*arguments, "--json").stdout)["pools"]
    assert [pool["streams"] for pool in pools] == [1, 3]
    for pool in pools:
        assert (pool["hop"], pool["block"]) == (80, 160)
        assert pool["ratio"] == pytest.approx(pool["us"]["one_by_one"] / pool["us"]["pool"], abs=0.01)
        assert pool["streams_per_core"] == int(80 / 8000 / pool["us"]["pool"] * 1e6)
        assert 0 <= pool["missed"] <= 1
    lines = call(*arguments).stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["streams", "1", "3"]
    assert call("bench", "tokens.onnx", "--streams", "2", "--items", "8").stdout.splitlines()[1].endswith("-")
    assert "no list" in refused("bench", "voice.onnx", "--streams", "1,x", code=2)
    assert "less than one block" in refused("bench", "voice.onnx", "--streams", "1", "--items", 5, code=2)
    assert "cannot be fed" in refused("bench", "voice.onnx", "--streams", "1", "--block", 100, code=2)


def test_bench_needs_a_block(refused):
    assert "less than one block" in refused("bench", "voice.onnx", "--items", 5, code=2)


def test_info(call, made):
    text = call("info", "voice.onnx").stdout
    for part in (
        "speech",
        "8000 items a second",
        "float32 [T]",
        "Apache-2.0",
        "voice column 0",
        "hop 10",
        "Sigmoid 1",
    ):
        assert part in text
    found = json.loads(call("info", "pair.onnx", "--json").stdout)
    assert found["state_bytes"] == 24
    assert found["layers"] == [{"name": "past", "bytes": 24}]
    assert found["algorithmic_latency"]["total_ms"] == 1000.0
    assert found["operators"]["Slice"] == 2
    assert found["file_bytes"] == (made / "pair.onnx").stat().st_size
