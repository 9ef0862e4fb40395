"""Bundles: what is packed, what is refused, and the one command that builds, here over stand-ins."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standins import HERE, SM, build_cuda

import streamssm
from streamssm.errors import IntegrityError, ModelFileError, OutputError
from streamssm.model import find
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt.bundle import BUILD, RECORD, open_bundle, write_bundle
from streamssm.tensorrt.folder import open_folder
from streamssm.tensorrt.profiles import calls_for
from streamssm.tensorrt.targets import find_target

pytest.importorskip("onnx")
BLOCKS = "160,640"


@pytest.fixture(scope="module")
def file():
    return read_model_file(streamssm.load("vad", backend="cpu").path)


@pytest.fixture(scope="module")
def written(file, tmp_path_factory) -> dict[bool, Path]:
    """A bundle with plugins and one without."""
    folder, calls = tmp_path_factory.mktemp("bundles"), calls_for(file.manifest, BLOCKS, 3)
    for plugins in (True, False):
        write_bundle(file, find_target("orin-nano"), folder / f"{plugins}", calls, plugins=plugins)
    return {plugins: folder / f"{plugins}" for plugins in (True, False)}


@pytest.fixture(params=[True, False], ids=["plugins", "native"])
def bundle(request, written, tmp_path) -> Path:
    return Path(shutil.copytree(written[request.param], tmp_path / "vad.orin-nano"))


def test_everything_is_in_it(bundle, file):
    found = open_bundle(bundle)
    files = found.record.files
    assert {"build.sh", "build.py", "compare.py", "local.py", "README.md", "golden.safetensors"} <= set(files)
    assert set(found.record.dialects) == {"10.3", "10.16"}
    assert found.record.engine.model_sha256 == file.manifest.sha256
    assert found.record.batch == (1, 3, 3)
    sources = {"kernels/tensorrt/CMakeLists.txt", "kernels/cuda/api.h"}
    assert (sources & set(files) == sources) == found.record.engine.plugins
    assert "kernels/tensorrt/engine/engine.cpp" in files


def test_the_packed_sources_are_complete(written):
    """Every header that a source names between quotes is packed, and all that the build globs."""
    root = written[True] / "kernels"
    sources = [path for path in root.rglob("*") if path.suffix in (".cu", ".cuh", ".cpp", ".h")]
    assert len(sources) > 30
    for source in sources:
        for name in re.findall(r'^#include "([^"]+)"', source.read_text(), re.MULTILINE):
            assert (source.parent / name).is_file(), f"{source.name} includes {name}"
    ours = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
    patterns = re.findall(r"\$\{cuda\}/(\S+?\.cu)", (root / "tensorrt" / "CMakeLists.txt").read_text())
    wanted = {path.name for pattern in patterns for path in ours.glob(pattern)}
    assert wanted
    assert wanted <= {path.name for path in (root / "cuda").iterdir()}


def test_the_dialect_is_that_of_the_version(written):
    import onnx

    found = open_bundle(written[True])
    for version, named in (("10.3", True), ("10.16", False)):
        (graph,) = found.record.dialects[version]
        assert graph.blocks == (160, 640)
        model = onnx.load(found.path / graph.onnx)
        ours = [node for node in model.graph.node if node.domain == "streamssm"]
        assert ours
        assert not model.functions
        for node in ours:
            assert ("plugin_namespace" in {a.name for a in node.attribute}) == named
    for graphs in open_bundle(written[False]).record.dialects.values():
        assert [graph.engine for graph in graphs] == ["model.b160.engine", "model.b640.engine"]


def test_damage_is_refused(bundle):
    (bundle / "build.py").write_text("import os")
    with pytest.raises(IntegrityError, match=r"build.py is not the file that was packed.*streamssm export"):
        open_bundle(bundle)
    (bundle / "build.py").unlink()
    with pytest.raises(ModelFileError, match="missing"):
        open_bundle(bundle)


def test_it_is_no_model_yet(bundle):
    with pytest.raises(ModelFileError, match=f"is a bundle.*sh .*{BUILD}"):
        streamssm.load(bundle)


def test_nothing_else_is_overwritten(file, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="something else"):
        write_bundle(file, find_target("thor"), tmp_path, calls_for(file.manifest))
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize("name", ["notes.txt", "results", RECORD])
def test_what_lies_beside_a_bundle_is_not_lost(bundle, file, name):
    """A bundle is replaced, but not what else was put there, nor what another program calls the same."""
    if name == "results":
        (bundle / name).mkdir()
    else:
        (bundle / name).write_text('{"mine": true}')
    with pytest.raises(OutputError, match=f"something else, with {'README.md' if name == RECORD else name}"):
        write_bundle(file, find_target("thor"), bundle, calls_for(file.manifest))
    assert (bundle / name).exists()


def test_it_is_written_over_an_older_one(bundle, file):
    write_bundle(file, find_target("thor"), bundle, calls_for(file.manifest), plugins=False)
    assert open_bundle(bundle).record.engine.target == "thor"
    assert not (bundle / "kernels" / "cuda").exists()


# Building, on a machine that has nothing but Python, a compiler and the stand-ins.


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """The environment of a device: its libraries by their own names, its Python module."""
    folder = tmp_path_factory.mktemp("device")
    library = build_cuda(folder)
    shutil.copyfile(HERE / "tensorrt.py", folder / "tensorrt.py")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHON": sys.executable,
        "STANDIN_CUDA": str(library),
        "STANDIN_SM": str(SM),
    }


def build(bundle: Path, machine: dict[str, str], **changes: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(bundle / BUILD)]
    return subprocess.run(command, env=machine | changes, capture_output=True, text=True, check=False)


@pytest.fixture
def native(written, tmp_path) -> Path:
    return Path(shutil.copytree(written[False], tmp_path / "vad.orin-nano"))


def test_one_command_builds_and_verifies(native, machine):
    done = build(native, machine)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if "differs" in line] == ["blocks of 160", "blocks of 640"]
    assert any(line.startswith("OK. Run it: streamssm run ") for line in lines)
    record = open_folder(native).record
    assert record.version == "10.16.1.11"
    assert record.blocks == (160, 640)
    assert {profile.batch for profile in record.profiles} == {(1, 3, 3)}


def test_the_built_folder_runs(native, machine):
    assert build(native, machine).returncode == 0
    code = "import streamssm, numpy, sys; model = streamssm.load(sys.argv[1])"
    code += "; print(model.scan(numpy.zeros(1600, 'f')).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code, native], env=machine, capture_output=True, text=True, check=False
    )
    assert done.stdout == "(10, 1)\n", done.stderr


def test_the_older_dialect_is_taken_where_the_newer_one_is_not_known(native, machine):
    done = build(native, machine, STANDIN_VERSION="10.3.0.30")
    assert done.returncode == 0, done.stderr
    assert open_folder(native).record.version == "10.3.0.30"


def test_a_wrong_engine_leaves_none(native, machine):
    done = build(native, machine, STANDIN_FAULT="1.5")
    assert done.returncode == 1
    assert "error: the engine is wrong on this device" in done.stderr
    assert "speech differs by" in done.stdout
    with pytest.raises(ModelFileError, match="is a bundle"):
        streamssm.load(native)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"STANDIN_SM": "110"}, "this GPU is sm_110, the bundle is for sm_87 (orin-nano)"),
        ({"STANDIN_SM": "0"}, "there is no NVIDIA GPU here"),
        ({"STANDIN_VERSION": "10.0.1"}, "TensorRT 10.0.1 is too old, the bundle needs 10.3 or later"),
    ],
)
def test_what_is_missing_is_said(native, machine, changes, said):
    done = build(native, machine, **changes)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_tensorrt(native, machine, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10')")
    done = build(native, machine, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "sudo apt-get install python3-libnvinfer" in done.stderr


def test_plugins_that_cannot_be_built(written, tmp_path, machine):
    bundle = Path(shutil.copytree(written[True], tmp_path / "vad.orin-nano"))
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "uname"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = build(bundle, machine, PATH=str(tools), CUDA_HOME=str(tools))
    assert done.returncode == 1
    assert "sudo apt-get install nvidia-jetpack cmake" in done.stderr


def test_a_damaged_bundle_is_not_built(native, machine):
    (native / "manifest.json").write_text("{}")
    done = build(native, machine)
    assert done.returncode == 1
    assert "manifest.json is missing or not the one that was packed" in done.stderr


def test_the_sample_is_read_without_numpy(native):
    """The device's own reader and comparison agree with ours."""
    import numpy as np
    from safetensors.numpy import load_file

    from streamssm.tensorrt import compare_on_device as compare

    found, wanted = (
        compare.tensors_of(str(native / "golden.safetensors")),
        load_file(native / "golden.safetensors"),
    )
    assert found.keys() == wanted.keys()
    for name, (dims, values) in found.items():
        np.testing.assert_array_equal(np.array(values).reshape(dims), wanted[name])


@pytest.mark.parametrize(("shape", "rows"), [((1000,), 3), ((2, 300), 5), ((7,), 2), ((), 4)])
def test_sampled_columns_are_the_same_ones(shape, rows):
    import numpy as np

    from streamssm import golden
    from streamssm.tensorrt import compare_on_device as compare

    y = np.arange(rows * int(np.prod(shape)), dtype=np.float32).reshape(rows, *shape)
    kept = golden.sampled_columns(y)
    columns = compare.sampled(shape, kept.shape)
    flat = y.reshape(rows, -1)
    np.testing.assert_array_equal(flat[:, list(columns)], kept.reshape(rows, -1))


def test_the_scripts_need_no_package(written):
    """What is copied imports the standard library and TensorRT alone."""
    for name in ("build.py", "compare.py", "local.py"):
        code = f"import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; import {name[:-3]}"
        done = subprocess.run(
            [sys.executable, "-S", "-E", "-c", code],
            cwd=written[False],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_info(bundle, capsys):
    from click.testing import CliRunner

    from streamssm.cli import cli

    done = CliRunner().invoke(cli, ["info", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["target"] == "orin-nano"
    assert report["blocks"] == [160, 640]
    assert report["files"] == len(open_bundle(bundle).record.files)
    text = CliRunner().invoke(cli, ["info", str(bundle)]).stdout
    assert f"sh {bundle}/build.sh" in text
    (bundle / RECORD).write_text("{}")
    assert CliRunner().invoke(cli, ["info", str(bundle)]).exit_code != 0


# What is wrong with a record, an old build, a path.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 9}, "has format 9, this version reads 1"),
        ({"files": {}}, "has no hash of build.py, build.sh"),
        ({"dialects": {}}, "has no hash of any graph"),
        ({"files": {"../x": {"size": 1, "sha256": "0" * 64}}}, "cannot be read: Expected `str` matching"),
        ({"files": {"/etc/x": {"size": 1, "sha256": "0" * 64}}}, "cannot be read: Expected `str` matching"),
        ({"files": {"a/../x": {"size": 1, "sha256": "0" * 64}}}, "cannot be read: Expected `str` matching"),
    ],
    ids=["format", "no files", "no graphs", "above", "absolute", "roundabout"],
)
def test_a_record_that_cannot_be_trusted(bundle, change, said):
    record = json.loads((bundle / RECORD).read_text())
    (bundle / RECORD).write_text(json.dumps(record | change))
    with pytest.raises(ModelFileError, match=re.escape(said)):
        open_bundle(bundle)


def test_a_record_that_is_no_text(bundle):
    (bundle / RECORD).write_bytes(b'{"command": "\xff"}')
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_bundle(bundle)


def test_the_manifest_of_another_model(bundle):
    record = json.loads((bundle / RECORD).read_text())
    record["engine"]["model_sha256"] = "0" * 64
    (bundle / RECORD).write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match="is a bundle of 0000000000000000"):
        open_bundle(bundle)


def test_the_command_in_it_finds_a_built_in_model(bundle, tmp_path, file):
    found = open_bundle(bundle).record
    assert found.command.startswith("streamssm export vad --format tensorrt")
    own = tmp_path / "vad.onnx"
    shutil.copyfile(file.path, own)
    made = write_bundle(
        read_model_file(own), find_target("thor"), tmp_path / "b.thor", calls_for(file.manifest)
    )
    assert made.record.command.startswith("streamssm export vad.onnx --format tensorrt")


def test_an_old_bundle_survives_a_new_one_that_cannot_be_put_in_place(bundle, file, monkeypatch):
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    rename, calls = os.rename, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(file, find_target("thor"), bundle, calls_for(file.manifest), plugins=False)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_name_that_no_folder_can_have(file, tmp_path):
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        write_bundle(file, find_target("thor"), tmp_path / ("a" * 300), calls_for(file.manifest))


def test_a_folder_without_a_suffix_is_found(written, tmp_path, monkeypatch):
    shutil.copytree(written[False], tmp_path / "engine")
    shutil.copytree(written[False], tmp_path / "vad")
    monkeypatch.chdir(tmp_path)
    assert find("engine") == Path("engine")
    assert find("vad").suffix == ".onnx"  # the built-in one has the name first
    with pytest.raises(ModelFileError, match="no built-in model 'nothing'"):
        find("nothing")


def test_a_path_with_blanks_and_quotes(written, tmp_path, machine):
    bundle = Path(shutil.copytree(written[False], tmp_path / "it's $HOME here" / "vad.orin-nano"))
    done = build(bundle, machine)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("OK. Run it: "))
    assert shlex.split(line)[3:] == ["streamssm", "run", str(bundle), "SOURCE"]
    assert open_folder(bundle).record.blocks == (160, 640)


def test_it_is_built_again_after_an_upgrade(native, machine):
    """The timings of another version are not taken, and must not stop the build."""
    for version in ("10.3.0.30", "10.16.1.11"):
        done = build(native, machine, STANDIN_VERSION=version)
        assert done.returncode == 0, done.stderr
        assert open_folder(native).record.version == version
        assert (native / "timing.cache").read_bytes().startswith(version.encode())


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"format": 9}'])
def test_a_record_that_the_device_cannot_read(native, machine, content):
    (native / RECORD).write_bytes(content)
    done = build(native, machine)
    assert done.returncode == 1
    assert done.stderr.startswith("error: bundle.json ")
    assert "Traceback" not in done.stderr


def test_a_library_of_another_jetpack_is_refused(written, tmp_path, machine):
    bundle = Path(shutil.copytree(written[True], tmp_path / "vad.orin-nano"))
    (tmp_path / "old.so").write_bytes(b"\x7fELF of another age")
    command = [sys.executable, str(bundle / "build.py"), "--plugins", str(tmp_path / "old.so")]
    done = subprocess.run(command, env=machine, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: the plugins cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_plugins_are_built_anew_after_an_upgrade(written, tmp_path, machine):
    """Over tools that write down what they are asked for."""
    bundle = Path(shutil.copytree(written[True], tmp_path / "vad.orin-nano"))
    tools = tmp_path / "cuda" / "bin"
    tools.mkdir(parents=True)
    asked = tmp_path / "asked"
    scripts = {
        "nvcc": 'echo "release $CUDA"',
        "cmake": f'case "$1" in --build) [ -e build/plugins/libstreamssm_tensorrt.so ] || echo new >>{asked};'
        " mkdir -p build/plugins; echo made >build/plugins/libstreamssm_tensorrt.so;; esac",
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    for cuda in ("12.6", "12.6", "13.2"):
        done = build(bundle, machine, CUDA_HOME=str(tools.parent), CUDA=cuda)
        assert "the plugins cannot be loaded" in done.stderr, done.stderr
    assert asked.read_text().splitlines() == ["new", "new"]


def test_what_is_printed_is_what_differs(native):
    """The relative error is printed also where all of it is close to zero, and then counts for nothing."""
    from array import array

    from streamssm.tensorrt import compare_on_device as compare

    lines: list[str] = []
    sample = {"x": ([1], array("f", [0.0])), "y.a": ([1, 1], array("f", [1e-6]))}
    said, compare.say = compare.say, lines.append
    try:
        judged = compare.compare({"name": "a", "shape": [1]}, {"a": array("f", [2e-6])}, sample, 1)
    finally:
        compare.say = said
    assert judged == 0.0
    assert "differs by 1e-06, 1 of its largest value" in lines[0]
