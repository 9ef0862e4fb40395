"""``streamssm info`` and ``streamssm devices`` on engines."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from standins import write_engine

import streamssm
from streamssm.cli import cli
from streamssm.onnx_file import read_model_file
from streamssm.tensorrt import local


class Packer:
    """Writes engine files without a library."""

    __version__ = "1.7.1.116"

    @staticmethod
    def pack(onnx: bytes, profiles: list) -> bytes:
        return b"an engine"


@pytest.fixture
def folder(tmp_path):
    file = read_model_file(streamssm.load("vad", backend="cpu").path)
    changes = {"kind": "tensorrt_rtx", "target": "rtx-40", "sm": 89}
    return write_engine(tmp_path / "vad.rtx-40", file, Packer, [160, 640], 8, **changes)


def info(folder, *options):
    done = CliRunner().invoke(cli, ["info", str(folder), *options])
    return done.exit_code, done.stdout + done.stderr


def test_an_engine_folder(folder, monkeypatch):
    monkeypatch.setattr(local, "compute_capability", lambda: None)
    code, text = info(folder)
    assert code == 0, text
    for said in ("rtx-40", "TensorRT-RTX 1.7.1.116", "no GPU on this machine", "blocks of 640 x 1 to 8"):
        assert said in text
    report = json.loads(info(folder, "--json")[1])
    assert report["sm"] == 89
    assert [entry["block"] for entry in report["profiles"]] == [160, 640]
    assert report["golden_vectors"] == "yes"


def test_whether_it_fits_this_machine(folder, monkeypatch):
    monkeypatch.setattr(local, "compute_capability", lambda: 120)
    assert "not for this GPU, sm_120; build one: streamssm export vad.onnx" in info(folder)[1]
    monkeypatch.setattr(local, "compute_capability", lambda: 89)
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda package: "1.5.0")
    assert "this GPU, but tensorrt-rtx 1.5.0 is installed; build it again" in info(folder)[1]
    monkeypatch.setattr(metadata, "version", lambda package: "1.7.0")
    assert info(folder)[1].rstrip().endswith("yes")


def test_what_is_not_whole_is_refused(folder, tmp_path):
    (folder / "model.engine").write_bytes(b"another")
    code, text = info(folder)
    assert code == 3
    assert "build it again: streamssm export vad.onnx" in text
    code, text = info(tmp_path)
    assert code == 3
    assert "an engine folder is what" in text


def test_devices_say_what_can_be_run(monkeypatch):
    from importlib import metadata

    def said() -> str:
        done = CliRunner().invoke(cli, ["devices", "--json"])
        backends = {one["name"]: one["state"] for one in json.loads(done.stdout)["backends"]}
        return backends["tensorrt"]

    monkeypatch.setattr(local, "compute_capability", lambda: None)
    assert said() == "not usable: there is no NVIDIA GPU"
    monkeypatch.setattr(local, "compute_capability", lambda: 87)
    monkeypatch.setattr(metadata, "version", lambda package: "10.3.0")
    assert said() == "engines for sm_87, with tensorrt 10.3.0 and tensorrt-rtx 10.3.0"
