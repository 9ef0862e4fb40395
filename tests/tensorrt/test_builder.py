"""Engine folders, dialects, profiles and the command, without a library that builds anything."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from builder_stand_in import stand_in
from click.testing import CliRunner

from streamssm.cli import cli
from streamssm.errors import (
    BackendError,
    ExportError,
    GateError,
    IntegrityError,
    ModelFileError,
    OutputError,
    UsageError,
)
from streamssm.model import find
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt import builder, dialect
from streamssm.tensorrt.builder import Options, export_engine
from streamssm.tensorrt.dialect import to_dialect
from streamssm.tensorrt.folder import ENGINE_SUFFIX, decode_record, encode_record, open_folder
from streamssm.tensorrt.lowering_check import check_graph
from streamssm.tensorrt.profiles import Calls, calls_for, shapes_of
from streamssm.tensorrt.targets import find_target

VAD = read_model_file(find("vad"))


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = stand_in("tensorrt_rtx", "1.7.1")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


@pytest.fixture
def folder(rtx: ModuleType, tmp_path: Path) -> Path:
    options = Options(Calls((160, 640), 4), "fp16", verify=False)
    return export_engine(VAD, find_target("rtx-40"), tmp_path / "vad.rtx-40", options).path


def spoil(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_a_folder_holds_all_that_a_host_needs(folder: Path) -> None:
    opened = open_folder(folder)
    record = opened.record
    assert {path.name for path in folder.iterdir()} == {
        *("engine.json", "manifest.json", "golden.safetensors", "model.b160.engine", "model.b640.engine")
    }
    assert opened.manifest == VAD.manifest
    assert opened.golden == VAD.golden
    assert (record.target, record.kind, record.version, record.sm) == ("rtx-40", "tensorrt_rtx", "1.7.1", 89)
    assert (record.precision, record.plugins, record.blocks) == ("fp16", False, (160, 640))
    assert record.model_sha256 == VAD.manifest.sha256
    assert opened.engine(record.profile(640, 3)).read_bytes() == b"an engine"
    assert record.profile(640, 3).batch == (1, 4, 4)
    assert decode_record(encode_record(record)) == record
    (engine, _) = json.loads((folder / "engine.json").read_text())["engines"]
    assert (engine["size"], engine["kernels"]) == (len(b"an engine"), 1)


def test_networks_are_strongly_typed_without_tf32_for_one_gpu(rtx: ModuleType, folder: Path) -> None:
    assert [config.capability for _, config in rtx.made] == [89, 89]
    for network, config in rtx.made:
        assert network.flags == 1
        assert config.cleared == ["tf32"]
        (profile,) = config.profiles
        assert profile["0.0.past"] == ((1, 320), (4, 320), (4, 320))
    shapes = [config.profiles[0]["samples"] for _, config in rtx.made]
    assert shapes == [((1, 160), (4, 160), (4, 160)), ((1, 640), (4, 640), (4, 640))]


def test_one_sequence_needs_no_profile(rtx: ModuleType, tmp_path: Path) -> None:
    options = Options(Calls((160,)), verify=False)
    built = export_engine(VAD, find_target("sm_86"), tmp_path / "out", options)
    ((_, config),) = rtx.made
    assert not config.profiles
    assert [file.name for file in built.record.engines] == ["model" + ENGINE_SUFFIX]


# What a host refuses.


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (
            lambda f: (f / "model.b160.engine").write_bytes(b"an engibe"),
            IntegrityError,
            "streamssm export vad",
        ),
        (lambda f: (f / "model.b160.engine").write_bytes(b"an"), IntegrityError, "has 2 bytes"),
        (lambda f: (f / "model.b160.engine").unlink(), ModelFileError, "copy the whole folder again"),
        (lambda f: (f / "engine.json").unlink(), ModelFileError, "missing or no plain file"),
        (lambda f: (f / "engine.json").write_text("{"), ModelFileError, "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{}"), ModelFileError, "manifest"),
        (
            lambda f: spoil(f / "manifest.json", b'"streamssm', b'"stream-ssm'),
            IntegrityError,
            "manifest.json",
        ),
        (lambda f: spoil(f / "golden.safetensors", b"F32", b"I32"), IntegrityError, "golden.safetensors has"),
        (lambda f: (f / "golden.safetensors").unlink(), ModelFileError, "golden.safetensors is missing"),
    ],
)
def test_a_spoilt_folder_is_refused(folder: Path, spoil, error: type[Exception], said: str) -> None:
    spoil(folder)
    with pytest.raises(error, match=said):
        open_folder(folder)


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    engine = folder / "model.b160.engine"
    engine.rename(tmp_path / "elsewhere")
    engine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="no plain file"):
        open_folder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 9},
        {"plugins": True},
        {"plugin_version": "0.1.0"},
        {"profiles": []},
        {"engines": []},
        {"model_sha256": "0" * 64},
        {"input": "other"},
        {"states": []},
        {"kind": "onnx"},
        {"surprise": 1},
        {"sm": 0},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(folder: Path, changes: dict) -> None:
    record = json.loads((folder / "engine.json").read_text()) | changes
    (folder / "engine.json").write_text(json.dumps(record))
    with pytest.raises(ModelFileError, match=r"build the engine again|build it again|upgrade"):
        open_folder(folder)


@pytest.mark.parametrize(
    "name", ["../model.engine", "/model.engine", "engine.json", ".x.engine", "a b.engine"]
)
def test_an_engine_lies_in_the_folder_itself(folder: Path, name: str) -> None:
    text = (folder / "engine.json").read_text().replace("model.b160.engine", name)
    (folder / "engine.json").write_text(text)
    with pytest.raises(ModelFileError):
        open_folder(folder)


def test_a_call_that_no_profile_holds_is_told_what_builds_one(folder: Path) -> None:
    record = open_folder(folder).record
    with pytest.raises(UsageError, match=r"not 320; .* --block 160,320,640 --batch 4 --plugins off$"):
        record.profile(320)
    with pytest.raises(UsageError, match=r"1 to 4 sequences at once, not 9; .* --batch 9 "):
        record.profile(160, 9)


# What the builder refuses, and says.


def test_nothing_but_an_engine_folder_is_replaced(rtx: ModuleType, folder: Path, tmp_path: Path) -> None:
    options = Options(Calls((160,)), verify=False)
    before = open_folder(folder).record
    again = export_engine(VAD, find_target("rtx-30"), folder, options)
    assert (before.sm, again.record.sm) == (89, 86)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for path in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(OutputError, match="name one that does not exist yet"):
            export_engine(VAD, find_target("rtx-30"), path, options)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_folder_with_more_than_an_engine_is_kept(rtx: ModuleType, folder: Path, tmp_path: Path) -> None:
    options = Options(Calls((160,)), verify=False)
    (folder / "notes.txt").write_text("keep")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "engine.json").write_text('{"cylinders": 4}')
    for path, name in ((folder, "notes.txt"), (tmp_path / "mine", "engine.json")):
        with pytest.raises(OutputError, match=f"something else, with {name}"):
            export_engine(VAD, find_target("rtx-30"), path, options)
        assert (path / name).exists()
    (folder / "notes.txt").unlink()
    (folder / "engine.json").write_text('{"model_sha256": cut sh')
    export_engine(VAD, find_target("rtx-30"), folder, options)


def test_what_comes_into_the_folder_during_the_build_is_kept(rtx: ModuleType, folder: Path) -> None:
    def put(what: str, done: int, total: int) -> None:
        (folder / "notes.txt").write_text("keep")

    with pytest.raises(OutputError, match=r"with notes\.txt"):
        export_engine(VAD, find_target("rtx-30"), folder, Options(Calls((160,)), verify=False), put)
    assert (folder / "notes.txt").read_text() == "keep"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (None, "tensorrt_rtx 1.7.1 cannot compile the graph for sm_89: no kernel for node 7"),
        ("unreadable", "tensorrt_rtx 1.7.1 cannot read the graph: Odd node 7: has no importer"),
    ],
)
def test_a_failed_build_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan: object, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in("tensorrt_rtx", "1.7.1", plan))
    with pytest.raises(ExportError, match=said):
        export_engine(VAD, find_target("rtx-40"), tmp_path / "out", Options(Calls((160,)), verify=False))
    assert not list(tmp_path.iterdir())


def test_a_gpu_the_library_does_not_know(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="has nothing for sm_120; there are sm_86, sm_89"):
        export_engine(VAD, find_target("rtx-50"), tmp_path / "out", Options(Calls((160,)), verify=False))


@pytest.mark.parametrize(("target", "extra"), [("rtx-40", "rtx"), ("sm_90", "tensorrt")])
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, extra: str
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=rf"pip install 'streamssm\[{extra}\]'"):
        export_engine(VAD, find_target(target), tmp_path / "out", Options(Calls((160,)), verify=False))


def test_a_library_that_only_runs_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(BackendError, match=r"builds no engines; pip install 'streamssm\[tensorrt\]'"):
        export_engine(VAD, find_target("sm_90"), tmp_path / "out", Options(Calls((160,)), verify=False))


def test_an_interrupt_stops_the_build(rtx: ModuleType, tmp_path: Path) -> None:
    def press(what: str, done: int, total: int) -> None:
        if what == "Build" and done == 1:
            raise KeyboardInterrupt

    options = Options(Calls((160,)), verify=False)
    with pytest.raises(KeyboardInterrupt):
        export_engine(VAD, find_target("rtx-40"), tmp_path / "out", options, press)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_that_comes_in_the_log_of_the_library_is_not_lost(
    rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library drops what a callback raises, as the binding of its log does."""

    def compile_(self, network: object, config: object) -> bytes | None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        return b"an engine" if config.progress_monitor.step_complete("Build", 0) else None

    monkeypatch.setattr(rtx.Builder, "build_serialized_network", compile_)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        export_engine(VAD, find_target("rtx-40"), tmp_path / "out", Options(Calls((160,)), verify=False))
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.iterdir())


def test_a_timing_cache_that_cannot_be_written_is_refused_before_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = stand_in("tensorrt", "10.16.1")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    (tmp_path / "file").write_text("")
    options = Options(Calls((160,)), timing_cache=tmp_path / "file" / "timing.cache", verify=False)
    with pytest.raises(OutputError, match=r"timing.cache cannot be used: (Not a dir|File exists)"):
        export_engine(VAD, find_target("sm_90"), tmp_path / "out", options)
    assert not module.made


def test_a_library_that_cannot_load_its_own_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(builder, "import_module", fail)
    with pytest.raises(BackendError, match=r"libnvinfer.so.10: .*pip install 'streamssm\[rtx\]'"):
        export_engine(VAD, find_target("rtx-40"), tmp_path / "out", Options(Calls((160,)), verify=False))


def test_progress_tells_the_outermost_phase(rtx: ModuleType, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = Options(Calls((160,)), verify=False)
    export_engine(VAD, find_target("rtx-40"), tmp_path / "out", options, lambda *step: told.append(step))
    assert [step for step in told if step[0] == "Build"] == [("Build", n, 2) for n in (0, 1, 2, 2)]
    assert "inner" not in {step[0] for step in told}


def test_plugins_are_one_engine_with_a_profile_for_each_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = stand_in("tensorrt", "10.16.1")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(builder, "load_plugins", lambda library: SimpleNamespace(version="0.1.0"))
    cache = tmp_path / "deep" / "timing.cache"
    options = Options(Calls((160, 640), 2), plugins=True, timing_cache=cache)
    built = export_engine(VAD, find_target("sm_90"), tmp_path / "out", options)
    ((network, config),) = module.made
    assert [profile["samples"][1] for profile in config.profiles] == [(2, 160), (2, 640)]
    assert [(p.engine, p.index, p.block) for p in built.record.profiles] == [
        ("model.engine", 0, 160),
        ("model.engine", 1, 640),
    ]
    assert (built.record.plugins, built.record.plugin_version) == (True, "0.1.0")
    assert config.capability is None
    assert cache.read_bytes() == b"timed"
    assert any(node.domain == "streamssm" for node in onnx.load_from_string(network.data).graph.node)
    with pytest.raises(UsageError, match="takes no plugins"):
        export_engine(VAD, find_target("rtx-40"), tmp_path / "other", options)


# Dialects.


def attributes(data: bytes) -> list[dict]:
    nodes = [node for node in onnx.load_from_string(data).graph.node if node.domain == "streamssm"]
    return [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]


@pytest.mark.parametrize(
    ("version", "named"), [("10.3", True), ("10.9.0", True), ("10.10", False), ("11.1", False)]
)
def test_where_a_version_looks_for_plugins(version: str, named: bool) -> None:
    found = attributes(to_dialect(VAD, version, True))
    assert len(found) == 7
    assert all(given["plugin_version"] == b"1" for given in found)
    assert all((given.get("plugin_namespace") == b"streamssm") is named for given in found)


@pytest.mark.parametrize("plugins", [True, False])
def test_every_version_can_read_the_file(plugins: bool) -> None:
    model = onnx.load_from_string(to_dialect(VAD, "10.3", plugins, block=160))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] <= 20
    assert model.ir_version <= 9
    assert not model.functions
    assert not model.metadata_props  # its seal would be another file's
    onnx.checker.check_model(model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"version": "ten"}, "no version of TensorRT"),
        ({"precision": "int8"}, "no precision 'int8'"),
        ({"block": None}, "multiple of the model's hop of 160 items, not None"),
        ({"block": 100}, "multiple of the model's hop of 160 items, not 100"),
    ],
)
def test_what_is_asked_of_a_dialect(given: dict, said: str) -> None:
    options = {"version": "10.3", "precision": "fp32", "block": 160} | given
    with pytest.raises(UsageError, match=said):
        to_dialect(VAD, options.pop("version"), False, **options)


def test_what_one_file_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "_MOST_BYTES", 1_000_000)
    with pytest.raises(ExportError, match=r"0\.0 GB with fp32 weights, .* use --precision fp16"):
        to_dialect(VAD, "10.3", True)
    assert len(to_dialect(VAD, "10.3", True, precision="fp16")) < 1_000_000


def test_onnx_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx; pip install 'streamssm\[tensorrt\]' or"):
        to_dialect(VAD, "10.3", True)


def test_the_graph_is_compared_with_the_model() -> None:
    data = to_dialect(VAD, "10.3", False, block=160)
    assert check_graph(VAD, data, "fp32", 160)["speech"] < 1e-5
    model = onnx.load_from_string(data)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("out_proj.weight.T"))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(GateError, match=r"differs from .*vad\.onnx in output 'speech': .* 2e-05 is allowed"):
        check_graph(VAD, model.SerializeToString(), "fp32", 160)


def test_the_comparison_sees_what_only_old_streams_and_second_rows_have(exported: dict[str, Path]) -> None:
    """A ring that forgets, and a row that reads its neighbour's state, from the first call on."""
    file = read_model_file(exported["sensor"])
    data = to_dialect(file, "10.3", False, block=4)
    check_graph(file, data, "fp32", 4)
    name = next(state.name for state in file.manifest.states if len(state.shape) == 3)
    for replaced in (b"old", b"row"):
        model = onnx.load_from_string(data)
        for node in model.graph.node:
            node.input[:] = [f"{name}.{replaced!r}" if one == name else one for one in node.input]
        zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32 if replaced == b"old" else np.int64), "z")
        model.graph.initializer.append(zero)
        if replaced == b"old":  # what is small, as in a young stream, is right
            made = [onnx.helper.make_node("Mul", [name, "z"], [f"{name}.{replaced!r}"])]
        else:
            made = [
                onnx.helper.make_node("Gather", [name, "z"], ["first"], axis=0),
                onnx.helper.make_node("Shape", [name], ["sizes"]),
                onnx.helper.make_node("Expand", ["first", "sizes"], [f"{name}.{replaced!r}"]),
            ]
        for index, node in enumerate(made):
            model.graph.node.insert(index, node)
        with pytest.raises(GateError, match="differs"):
            check_graph(file, model.SerializeToString(), "fp32", 4)


# Profiles.


def test_blocks_come_from_the_manifest() -> None:
    tokens = msgspec.structs.replace(
        VAD.manifest,
        input=msgspec.structs.replace(VAD.manifest.input, kind="tokens", rate=None, hop=1),
        block=8,
    )
    assert calls_for(VAD.manifest).blocks == (160,)
    assert calls_for(tokens).blocks == (1, 8, 16, 64)
    assert calls_for(VAD.manifest, "640,160,640", 3) == Calls((160, 640), 3)


@pytest.mark.parametrize(
    ("blocks", "batch", "said"),
    [
        ("100", 1, "hop of 160"),
        ("0", 1, "hop of 160"),
        ("1600000000000000000000", 1, "more than 16777216 items"),
        ("a,b", 1, "no list of numbers"),
        ("160", 0, "--batch 0"),
    ],
)
def test_calls_that_make_no_sense(blocks: str, batch: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        calls_for(VAD.manifest, blocks, batch)


def test_shapes_of_what_is_left_open() -> None:
    inputs = {"x": (-1, -1, 4), "h": (-1, 3), "fixed": (1, 7)}
    assert shapes_of(inputs, "x", 16, 2) == {"x": (2, 16, 4), "h": (2, 3), "fixed": (1, 7)}


# The command.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vad", "--format", "tensorrt"], "needs --target"),
        (["vad", "--format", "tensorrt", "--target", "rtx-99"], "no target 'rtx-99'"),
        (["vad", "--format", "tensorrt", "--target", "rtx-40", "--seed", "0"], "--seed is for a config"),
        (["vad", "--format", "tensorrt", "--target", "rtx-40", "--block", "7"], "hop of 160"),
        (["m.toml", "--format", "tensorrt", "--target", "rtx-40"], "streamssm export m.toml -o m.onnx"),
        (["m.toml", "-o", "m.onnx", "--target", "rtx-40"], "--target is for engines"),
        (["m.toml", "-o", "m.onnx", "--block", "1,2"], "no positive number"),
        (["m.toml"], "Missing option '-o'"),
        (["none", "--format", "tensorrt", "--target", "rtx-40"], "no built-in model 'none'"),
        (["vad", "--format", "tensorrt", "--target", "rtx-40", "--plugins", "on"], "takes no plugins"),
    ],
)
def test_the_command_refuses(rtx: ModuleType, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["export", *arguments])
    assert result.exit_code in (2, 3)
    assert said in result.stderr
    assert not rtx.made


def test_the_command_writes_a_folder(
    rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["export", "vad", "--format", "tensorrt", "--target", "rtx-40"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "vad.rtx-40\n"
    assert "sm_89, fp32 products" in result.stderr
    assert open_folder("vad.rtx-40").record.source == "vad"
