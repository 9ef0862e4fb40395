"""Which library is used, and what happens with none, with a wrong one, and with one that does not
serve the model."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import export_model

import streamssm
from streamssm import native, tolerance
from streamssm.cli import cli
from streamssm.errors import UsageError
from streamssm.manifest import DIGEST_PLACEHOLDER, MANIFEST_KEY
from streamssm.native import choose
from streamssm.native import library as module
from streamssm.native.library import _FILE, SWITCH, Library
from streamssm.onnx_file import seal

OURS = [("streamssm", "CausalConv1d"), ("", "MatMul")]


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place where the runtime looks for its library; nothing is there."""
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    module.library.cache_clear()
    yield tmp_path / _FILE
    module.library.cache_clear()


@pytest.fixture(scope="module")
def sensor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model("sensor", tmp_path_factory.mktemp("sensor"))


def test_library_serves_every_operator(library: Library) -> None:
    from streamssm.export.functions import OPERATORS

    assert set(library.operators) == set(OPERATORS)
    assert all(types == ("float32", "float16", "bfloat16") for types in library.operators.values())
    assert library.instructions in ("avx2", "avx512", "avx512vnni", "neon", "neon_dotprod")


def test_operators_that_have_no_kernel_are_left_alone(library: Library) -> None:
    assert choose(OURS).library == library
    unknown = choose([*OURS, ("streamssm", "Other"), ("streamssm", "Another")])
    assert str(unknown) == "plain ONNX: no native kernel for Another, Other"


@pytest.mark.parametrize(
    ("value", "expected"), [("on", "native"), ("unfused", "native"), ("off", f"plain ONNX: {SWITCH}=off")]
)
def test_switch(value: str, expected: str, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, value)
    assert streamssm.load("vad").kernels.startswith(expected)
    result = CliRunner().invoke(cli, ["info", "vad", "--json"])
    assert json.loads(result.stdout)["kernels"].startswith(expected)


@pytest.mark.parametrize("value", ["", "OFF", "0", "/lib/libevil.so"])
def test_other_values_of_the_switch_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, value)
    with pytest.raises(UsageError, match=SWITCH):
        choose(OURS)


def test_no_library_is_no_complaint(placed: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "holds no library" in streamssm.load("vad").kernels
    assert not caplog.records


def cut_short(path: Path, library: Library) -> None:
    path.write_bytes(library.path.read_bytes()[:5000])


def other_machine(path: Path, library: Library) -> None:
    data = bytearray(library.path.read_bytes())
    data[18:20] = b"\x16\x00"  # e_machine of an ELF file: S/390
    path.write_bytes(data)


def text(path: Path, library: Library) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def other_library(path: Path, library: Library) -> None:
    import _ctypes

    shutil.copy(_ctypes.__file__, path)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF files")
@pytest.mark.parametrize("damage", [cut_short, other_machine, text, other_library])
def test_wrong_library_is_reported_once(
    damage, library: Library, placed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(placed, library)
    models = [streamssm.load("vad") for _ in range(3)]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("streamssm", logging.WARNING)
    assert str(placed) in record.message
    for model in models:
        assert model.kernels.startswith("plain ONNX: ")
        assert str(placed) in model.kernels
    assert models[0].scan(np.zeros(1600, np.float32)).shape == (10, 1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"abi": module.ABI + 1}, f"version {module.ABI + 1}, this package needs {module.ABI}"),
        ({"abi": None}, "version None"),
        ({"instructions": None}, "this processor has no AVX2"),
        ({"operators": 3}, "does not say what it is"),
        (None, "does not say what it is"),
    ],
)
def test_library_of_another_version_or_processor(
    said: dict | None,
    message: str,
    placed: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placed.touch()
    full = {"abi": module.ABI, "instructions": "avx2", "operators": {}}
    answer = json.dumps(full | said).encode() if said else b"\xff"

    def describe() -> bytes:
        return answer

    loaded = SimpleNamespace(streamssm_ort_describe=describe)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda path: loaded)
    assert message in str(choose(OURS))
    assert message in str(choose(OURS))
    assert len(caplog.records) == 1


def test_report_goes_to_stderr_and_data_stay_the_same(library: Library, tmp_path: Path) -> None:
    """As a user sees it: in a process of its own, with nothing set up for logging."""
    (tmp_path / _FILE).write_text("text")
    program = (
        "import sys, streamssm.native; streamssm.native.__path__.insert(0, sys.argv.pop(1))\n"
        "from streamssm.__main__ import main; main()"
    )
    speech = Path(__file__).parents[2] / "examples" / "audio" / "speech.wav"
    outputs = []
    for folder in (tmp_path, library.path.parent):
        arguments = [sys.executable, "-c", program, str(folder), "run", "vad", str(speech)]
        outputs.append(subprocess.run(arguments, capture_output=True, check=True, text=True))
    wrong, right = outputs
    assert wrong.stdout == right.stdout
    assert wrong.stderr.count("native kernels are not used") == 1
    assert "native" not in right.stderr


def with_double_data(path: Path, out: Path) -> Path:
    """The model with the data of its first convolution in float64, which a body takes and no kernel does."""
    model = onnx.load(path)
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "CausalConv1d")
    make = onnx.helper.make_node
    before = make("Cast", [node.input[0]], ["as_double"], to=onnx.TensorProto.DOUBLE)
    after = make("Cast", ["of_double"], [node.output[0]], to=onnx.TensorProto.FLOAT)
    node.input[0], node.output[0] = "as_double", "of_double"
    model.graph.node.insert(index + 1, after)
    model.graph.node.insert(index, before)
    for entry in model.metadata_props:
        if entry.key == MANIFEST_KEY:
            manifest = json.loads(entry.value)
            entry.value = entry.value.replace(manifest["sha256"], DIGEST_PLACEHOLDER)
    out.write_bytes(seal(model.SerializeToString()))
    return out


def test_dtype_without_a_kernel_runs_on_the_bodies(library: Library, sensor: Path, tmp_path: Path) -> None:
    plain = streamssm.load(sensor)
    double = streamssm.load(with_double_data(sensor, tmp_path / "double.onnx"))
    assert plain.kernels.startswith("native")
    assert double.kernels.startswith("plain ONNX")
    assert "they cannot run it" in double.kernels
    x = np.random.default_rng(0).standard_normal((50, *plain.manifest.input.shape)).astype(np.float32)
    assert tolerance.within(double.scan(x), plain.scan(x), "float32")


@pytest.mark.parametrize("value", ["on", "unfused"])
def test_speech_gives_the_same_events_on_every_kernel(library: Library, value: str) -> None:
    speech = Path(__file__).parents[2] / "examples" / "audio" / "speech.wav"
    found = []
    for switch in (value, "off"):
        environment = os.environ | {SWITCH: switch}
        command = [sys.executable, "-m", "streamssm", "run", "vad", str(speech)]
        found.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert found[0] == found[1]
    assert found[0].count(b"start") == 4
