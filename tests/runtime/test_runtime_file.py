"""The model file: read without a backend, checked before anything is run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from toy_models import HEADER, TOYS, Toy, ema_toy

import streamssm
from streamssm.errors import IntegrityError, ManifestError, ModelFileError
from streamssm.manifest import MANIFEST_KEY
from streamssm.onnx_file import read_model_file, seal


@pytest.fixture(scope="module")
def data() -> bytes:
    return ema_toy().data()


def reseal(model: onnx.ModelProto, toy: Toy) -> bytes:
    """The file of a changed graph, with a hash that fits."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {MANIFEST_KEY: toy.manifest.encode()})
    return seal(model.SerializeToString())


def written(folder: Path, data: bytes) -> Path:
    path = folder / "a.onnx"
    path.write_bytes(data)
    return path


def test_what_a_file_says(tmp_path, data):
    file = read_model_file(written(tmp_path, data))
    assert file.manifest.name == "ema"
    assert file.golden is None
    assert file.op_counts["", "Scan"] == 1
    assert file.op_counts["", "Mul"] == 2  # inside the Scan
    assert file.domains == {""}
    assert file.functions == frozenset()
    digest = file.manifest.sha256
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_functions_are_listed_and_searched(tmp_path):
    toy = ema_toy()
    model = toy.proto()
    model.functions.append(function("streamssm", "Gate", [onnx.helper.make_node("Sigmoid", ["x"], ["y"])]))
    file = read_model_file(written(tmp_path, reseal(model, toy)))
    assert file.functions == {("streamssm", "Gate")}
    assert file.op_counts["", "Sigmoid"] == 1


def function(domain: str, name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_function(domain, name, ["x"], ["y"], nodes, opsets)


def test_reading_needs_no_backend(tmp_path, data):
    path = written(tmp_path, data)
    code = (
        "import sys; from streamssm.onnx_file import read_model_file; read_model_file(sys.argv[1]);"
        "sys.exit(bool({'onnx', 'onnxruntime', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code, os.fspath(path)], check=True)


def test_damage_of_any_byte_is_seen(tmp_path, data):
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x01 if at % 2 else 0x80
        with pytest.raises(ModelFileError) as caught:
            read_model_file(written(tmp_path, damaged))
        assert "\n" not in str(caught.value)


def test_every_part_is_too_short(tmp_path, data):
    for size in range(0, len(data), 7):
        with pytest.raises(
            ModelFileError, match=r"truncated|no graph|0 streamssm manifests|is empty|not an ONNX"
        ):
            read_model_file(written(tmp_path, data[:size]))
    with pytest.raises(ModelFileError, match=r"needs \d+ bytes, \d+ are left"):
        read_model_file(written(tmp_path, data[:500]))
    with pytest.raises(ModelFileError):
        read_model_file(written(tmp_path, data + b"\0"))


def test_an_edited_file_is_refused(tmp_path, data):
    for old, new in ((b"features", b"fEatures"), (b"Scan", b"Loop")):
        with pytest.raises(ModelFileError):
            read_model_file(written(tmp_path, data.replace(old, new)))
    with pytest.raises(IntegrityError, match=r"has sha256 .* records"):
        read_model_file(written(tmp_path, data.replace(b"toy", b"Toy")))


FOREIGN = [
    (b"PK\x03\x04" + b"x" * 50, "not an ONNX file.*zip archive"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "a web page"),
    (b'{"a": 1}', "JSON"),
    (b"GGUF\x03\0\0\0", "GGUF"),
    (b"\xff" * 100, "begins with"),
    (b"", "is empty"),
    (b"\0" * 100, "begins with"),
    (b"hello", "begins with b'hello'"),
]


@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_foreign_files(tmp_path, content, message):
    with pytest.raises(ModelFileError, match=message):
        streamssm.load(written(tmp_path, content))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ModelFileError, match="No such file"):
        streamssm.load(tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match="is a folder, neither a model file nor an engine"):
        streamssm.load(tmp_path)


def test_an_onnx_file_of_others(tmp_path):
    with pytest.raises(ModelFileError, match=r"0 streamssm manifests.*streamssm.export"):
        streamssm.load(written(tmp_path, ema_toy().proto().SerializeToString()))


def test_the_manifest_must_be_one_and_readable(tmp_path, data):
    model = onnx.load_from_string(data)
    model.metadata_props.append(model.metadata_props[0])
    with pytest.raises(ModelFileError, match="2 streamssm manifests"):
        read_model_file(written(tmp_path, model.SerializeToString()))
    model = onnx.load_from_string(data)
    model.metadata_props[0].value = "{}"
    with pytest.raises(ManifestError, match="cannot be read"):
        read_model_file(written(tmp_path, model.SerializeToString()))
    for digest in ("", "0" * 63, "x"):
        model = ema_toy().proto()
        onnx.helper.set_model_props(
            model, {MANIFEST_KEY: ema_toy().manifest.encode().replace("0" * 64, digest)}
        )
        with pytest.raises(ManifestError, match="64 digits"):
            read_model_file(written(tmp_path, model.SerializeToString()))
    with pytest.raises(ManifestError, match="64 digits"):
        ema_toy().data(description="0" * 64)


# Operators that are not allowed.


def nested_in_if(node: onnx.NodeProto) -> onnx.NodeProto:
    """``node`` inside two levels of control flow."""
    for level in range(2):
        graph = onnx.helper.make_graph([node], f"branch{level}", [], [])
        node = onnx.helper.make_node("If", ["condition"], ["z"], then_branch=graph, else_branch=graph)
    return node


@pytest.mark.parametrize("op", [("evil", "Run"), ("com.microsoft", "EPContext"), ("ai.onnx.contrib", "PyOp")])
@pytest.mark.parametrize("where", ["graph", "branch", "function", "training"])
def test_operators_that_are_not_allowed(tmp_path, op, where):
    toy = ema_toy()
    model = toy.proto()
    node = onnx.helper.make_node(op[1], ["x"], ["z"], domain=op[0])
    if where == "graph":
        model.graph.node.append(node)
    elif where == "branch":
        model.graph.node.append(nested_in_if(node))
    elif where == "training":
        model.training_info.add().algorithm.node.append(node)
    else:
        model.functions.append(function("streamssm", "Gate", [node]))
    with pytest.raises(ModelFileError, match=f"not allowed: {op[0]}::{op[1]}"):
        streamssm.load(written(tmp_path, reseal(model, toy)))


def test_endless_nesting_is_refused(tmp_path):
    toy = ema_toy()
    model, graph = toy.proto(), onnx.helper.make_graph([], "leaf", [], [])
    for _ in range(30):
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph)], "g", [], []
        )
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph))
    with pytest.raises(ModelFileError, match="nested deeper"):
        read_model_file(written(tmp_path, reseal(model, toy)))


# Weights in another file.


def with_external(location: str) -> bytes:
    """``y = x + w`` with w [2] in the file at ``location``."""
    toy = TOYS["ema"]()
    model = toy.proto()
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    model.graph.node[0].output[1] = "smooth"
    model.graph.node.append(onnx.helper.make_node("Add", ["smooth", "w"], ["y"]))
    return reseal(model, toy)


@pytest.mark.parametrize(
    "location", ["weights.bin", "../secret.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_weights_in_another_file_are_refused(tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(b"\0" * 8)
    with pytest.raises(ModelFileError, match=r"in another file, .*; export it as one file"):
        streamssm.load(written(tmp_path, with_external(location)))


def test_the_header_of_the_toys_is_supported():
    assert '"" : 21' in HEADER
