"""Costs counted in graphs, predictions against what was measured, and the command."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import streamssm
from streamssm.cli import cli
from streamssm.errors import BackendError, UsageError
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt import local
from streamssm.tensorrt.costs import costs_of
from streamssm.tensorrt.estimate import CORE_RATES, H100_RATES, Call, Gpu
from streamssm.tensorrt.plan import LOAD, make_plan, names
from streamssm.tensorrt.targets import DEVICES, TARGETS, find_device, find_target

pytest.importorskip("onnx")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import plan as bench  # noqa: E402

from sidebyside import shapes  # noqa: E402


@pytest.fixture(scope="module")
def file():
    return read_model_file(streamssm.load("vad", backend="cpu").path)


@pytest.fixture(scope="module")
def vad(file):
    return costs_of(file)


# Counting.


def test_vad_is_counted_by_hand(vad, file):
    """Three Mamba blocks of width 80 and 160 channels, two MLPs of 224, a convolution, a head."""
    kinds = [stage.kind for stage in vad.stages]
    assert kinds.count("scan") == kinds.count("conv") == 3
    assert kinds.count("product") == 1 + 3 * 4 + 2 * 2 + 1
    mamba, mlp = 80 * 320 + 160 * 37 + 5 * 160 + 160 * 80, 80 * 448 + 224 * 80
    weights = 200 * 80 + 3 * mamba + 2 * mlp + 80
    products = [stage for stage in vad.stages if stage.kind == "product"]
    assert sum(stage.parameters for stage in products) == weights
    # a frame is 160 samples
    assert sum(stage.operations for stage in products) * 160 == pytest.approx(2 * weights)
    scans = [stage for stage in vad.stages if stage.kind == "scan"]
    assert all(stage.state == 4 * 16 * 160 for stage in scans)
    assert all(stage.exponentials * 160 == pytest.approx(16 * 160 + 3 * 160) for stage in scans)
    assert vad.state == file.manifest.state_bytes
    assert vad.stored == pytest.approx(4 * file.manifest.parameters, rel=0.1)
    assert not vad.unknown


@pytest.mark.parametrize("shape", shapes.SHAPES.values(), ids=lambda shape: shape.name)
def test_counts_are_those_of_the_benchmark(shape):
    costs = bench.costs_of_shape(shape)
    products = [stage for stage in costs.stages if stage.kind == "product"]
    assert sum(stage.parameters for stage in products) == shapes.linear_parameters(shape)
    assert sum(stage.operations for stage in products) == pytest.approx(shapes.flops(shape, 1))
    assert costs.state == shape.state_bytes
    assert sum(stage.state for stage in costs.stages) == shape.state_bytes
    assert costs.stages[-1].last
    small = bench.costs_of_shape(shape, 4)
    ratio = small.sum(lambda stage: stage.weights()) / costs.sum(lambda stage: stage.weights())
    assert 0.12 < ratio < 0.25


@pytest.mark.parametrize("shape", [s for s in shapes.SHAPES.values() if s.tiny], ids=lambda s: s.name)
def test_the_shell_is_what_the_exporter_writes(shape, tmp_path):
    torch = pytest.importorskip("torch")
    from sidebyside.workers.ours import config
    from streamssm.export import build, export, model_options

    torch.manual_seed(0)
    path = tmp_path / "tiny.onnx"
    export(build(config(shape)).eval(), path, verify=False, **model_options(config(shape)))
    found, wanted = costs_of(read_model_file(path)), bench.costs_of_shape(shape)
    kept = ("kind", "state", "operations", "exponentials", "updates", "nodes", "last")
    rows = [[getattr(stage, name) for name in kept] for stage in found.stages]
    assert rows == [[getattr(stage, name) for name in kept] for stage in wanted.stages]
    for one, other in zip(found.stages, wanted.stages, strict=True):
        assert one.values == pytest.approx(other.values, rel=0.2)
    parameters = [sum(s.parameters for s in costs.stages) for costs in (found, wanted)]
    assert parameters[0] == pytest.approx(parameters[1], rel=0.02)


def test_what_is_not_counted_is_said(tmp_path):
    sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))
    from toy_models import ema_toy

    path = ema_toy().write(tmp_path)
    assert costs_of(read_model_file(path)).unknown == {"Scan": 1}
    result = CliRunner().invoke(cli, ["plan", str(path), "--target", "thor"])
    assert "not counted" in result.stdout
    assert "Scan 1" in result.stdout


# Against what was measured.


def measured(name):
    return json.loads((bench.RESULTS / name).read_text())


@pytest.mark.parametrize("row", list(bench.core_rows(measured("peers.json"))), ids=lambda row: row.name)
def test_within_30_percent_on_one_core(row):
    assert 1 / bench.LIMIT <= row.ratio(CORE_RATES) <= bench.LIMIT


@pytest.mark.parametrize("row", list(bench.gpu_rows(measured("gpu.json"))), ids=lambda row: row.name)
def test_within_30_percent_on_the_gpu(row):
    assert 1 / bench.LIMIT <= row.ratio(H100_RATES) <= bench.LIMIT


def test_fitting_finds_rates():
    rows = [row for row in bench.gpu_rows(measured("gpu.json")) if "B=" in row.name]
    wrong = replace(H100_RATES, start=3 * H100_RATES.start, single=H100_RATES.single / 2)
    assert bench._cost(rows, bench.fit(rows, wrong)) < 0.2 * bench._cost(rows, wrong)


# Plans.


def test_more_takes_longer(vad):
    gpu = Gpu(DEVICES["orin-nano"])
    for calls in (
        [Call(rows, 160) for rows in (1, 8, 64, 512, 4096)],
        [Call(4, items) for items in (160, 320, 1600, 16000)],
    ):
        times = [gpu.step(vad, call).seconds for call in calls]
        assert times == sorted(times)
    faster = Gpu(DEVICES["orin-agx"])
    assert faster.step(vad, Call(512, 160)).seconds < gpu.step(vad, Call(512, 160)).seconds


@pytest.mark.parametrize("target", [name for name in names() if name != "local-cpu"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_for_every_device(file, target, precision):
    plan = make_plan(file, target, 32, 160, precision)
    assert plan.seconds == pytest.approx(math.fsum(plan.terms.values()))
    assert plan.terms[plan.bound] == max(plan.terms.values())
    assert plan.period == 0.01
    assert plan.most > 32
    assert plan.states == 2 * 32 * file.manifest.state_bytes
    assert plan.sources
    assert all(source.startswith("https://") for source in plan.sources)
    # the streams that are promised are served in time, and one more is not
    device = find_device(target)
    assert Gpu(device).step(costs_of(file), Call(plan.most, 160, precision)).seconds <= LOAD * 0.01
    if plan.limit.startswith("time"):
        assert Gpu(device).step(costs_of(file), Call(plan.most + 1, 160, precision)).seconds > LOAD * 0.01


def test_memory_can_be_what_ends_it(file, monkeypatch):
    small = replace(DEVICES["orin-nano"], memory=3 << 20)
    monkeypatch.setitem(DEVICES, "orin-nano", small)
    plan = make_plan(file, "orin-nano", 1, 160)
    assert plan.limit == "memory"
    assert plan.most < 30
    monkeypatch.setitem(DEVICES, "orin-nano", replace(small, memory=1000))
    assert make_plan(file, "orin-nano", 1, 160).most == 0


def test_a_model_without_a_clock_has_no_period(tmp_path):
    sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))
    from toy_models import TOYS

    toy = next(made for made in (make() for make in TOYS.values()) if made.manifest.input.rate is None)
    plan = make_plan(read_model_file(toy.write(tmp_path)), "thor")
    assert plan.period is None
    assert plan.load is None


def test_what_is_read_of_a_table_is_not_all_of_it():
    """A table of which rows are looked up takes memory, and no time."""
    from streamssm.manifest import DIGEST_PLACEHOLDER, FORMAT, Input, Manifest, Output
    from streamssm.native.graph import Graph
    from streamssm.tensorrt.costs import count
    from streamssm.tensorrt.plan import _Planner

    writer = bench._Writer(32)
    x = writer.node("Gather", [writer.tensor(1000, 64), "tokens"])
    head = writer.product(x, 64, 8)
    ports = [bench.helper.make_tensor_value_info(name, 1, None) for name in ("tokens", head)]
    made = bench.helper.make_graph(writer.nodes, "g", ports[:1], ports[1:], writer.tensors)
    manifest = Manifest(
        format=FORMAT,
        name="table",
        sha256=DIGEST_PLACEHOLDER,
        producer="test",
        input=Input("tokens", "tokens", "int64", vocabulary=1000),
        outputs=(Output("logits", "logits", (8,)),),
        states=(),
        block=1,
    )
    costs = count(Graph(bench.helper.make_model(made).SerializeToString()), manifest)

    class File:
        pass

    File.manifest = manifest
    plan = _Planner(File, costs, "thor", 1, "fp16").plan(1)
    assert plan.traffic == 2 * 64 * 8
    assert plan.weights == 2 * (64 * 8 + 1000 * 64)


def test_this_core(file):
    plan = make_plan(file, "local-cpu", 1, 160)
    assert 1e-6 < plan.seconds < 1e-2
    assert plan.memory is None


def test_what_cannot_be_planned(file):
    with pytest.raises(
        UsageError, match=r"nothing is known about the device 'orin-mega'; there are orin-nano"
    ):
        make_plan(file, "orin-mega")
    with pytest.raises(UsageError, match="not a positive multiple of the hop of 160"):
        make_plan(file, "thor", items=100)
    with pytest.raises(UsageError, match="0 streams"):
        make_plan(file, "thor", streams=0)
    with pytest.raises(UsageError, match="no precision 'fp8'"):
        make_plan(file, "thor", precision="fp8")


def test_the_command():
    done = CliRunner().invoke(
        cli, ["plan", "vad", "--target", "orin-nano", "--streams", "32", "--hop", "10ms"]
    )
    assert done.exit_code == 0, done.output
    for said in ("Jetson Orin Nano 8 GB", "streams per device", "bound by", "https://developer.nvidia.com"):
        assert said in done.stdout
    done = CliRunner().invoke(cli, ["plan", "vad", "--target", "thor", "--target", "h100", "--json"])
    first, second = json.loads(done.stdout)
    assert (first["target"], second["target"]) == ("thor", "h100")
    assert first["load"] == pytest.approx(first["seconds"] / first["period"])
    assert CliRunner().invoke(cli, ["plan", "vad"]).stdout.count("Jetson") >= 4


def test_the_command_refuses_a_folder(tmp_path):
    done = CliRunner().invoke(cli, ["plan", str(tmp_path)])
    assert done.exit_code == 2
    assert "is a folder, and a plan is counted in a model's graph" in done.stderr


def test_what_can_be_planned_is_listed_as_a_whole(file):
    with pytest.raises(UsageError) as caught:
        make_plan(file, "sm_86")
    assert str(caught.value).endswith(", ".join(names()))


# Targets.


def test_targets_are_found(monkeypatch):
    for name, target in TARGETS.items():
        assert find_target(name) is target
        assert find_device(name).sm == target.sm
    assert find_target("sm_86").kind == "tensorrt_rtx"
    assert not find_target("sm_121").on_device
    assert find_target("sm_87").versions == find_target("orin-nano").versions
    assert find_target("sm90").on_device
    monkeypatch.setattr(local, "compute_capability", lambda: 90)
    here = find_target("local")
    assert (here.sm, here.on_device, here.kind) == (90, False, "tensorrt")
    monkeypatch.setattr(local, "compute_capability", lambda: None)
    with pytest.raises(BackendError, match="no NVIDIA GPU to build for; name a target: orin-nano"):
        find_target("local")
    for wrong in ("rtx-20", "sm_60", "sm_999", "sm_", ""):
        with pytest.raises(UsageError, match="there is no target"):
            find_target(wrong)


def test_published_figures_fit_together():
    """Peak figures as published, which are not in the table, follow from what is."""
    published = {
        "rtx-4090": 82.6,
        "rtx-3090": 35.6,
        "rtx-5090": 104.8,
        "orin-agx": 5.3,
        "h100": 67.0,
        "thor": 8.06,
    }
    for name, teraflops in published.items():
        assert DEVICES[name].float32 / 1e12 == pytest.approx(teraflops, rel=0.01)
    assert DEVICES["orin-nano"].compute("float16") / 1e12 == pytest.approx(17, rel=0.03)
    assert DEVICES["h100"].compute("float16") / 1e12 == pytest.approx(989, rel=0.01)
