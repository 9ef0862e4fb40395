"""Weights in a file beside the model: read as one model, and nothing of what a hostile one may try."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from test_runtime_file import function, reseal
from toy_models import TOYS, Toy

import streamssm
from streamssm import onnx_file
from streamssm.errors import BackendError, IntegrityError, ManifestError, ModelFileError
from streamssm.manifest import ExternalFile
from streamssm.onnx_file import read_model_file

NAME = "a.onnx.data"
OFFSET = 64
WEIGHTS = np.array([3.0, -5.0], np.float32)
CONTENT = bytes(OFFSET) + WEIGHTS.tobytes() + bytes(56)

Entries = list[tuple[str, str]]


def recorded(**changes: object) -> ExternalFile:
    file = ExternalFile(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    return msgspec.structs.replace(file, **changes)


def place(**changes: str) -> Entries:
    return list(({"location": NAME, "offset": str(OFFSET), "length": "8"} | changes).items())


def external(
    name: str = "w", entries: Entries | None = None, dims: tuple[int, ...] = (2,)
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in place() if entries is None else entries:
        tensor.external_data.add(key=key, value=value)
    return tensor


def toy(files: tuple[ExternalFile, ...] | None = None) -> Toy:
    made = TOYS["ema"]()
    files = (recorded(),) if files is None else files
    made.manifest = msgspec.structs.replace(made.manifest, external=files)
    return made


def graph(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """``y = x + w`` after the toy's own smoothing, w [2] elsewhere."""
    model = toy().proto()
    model.graph.initializer.extend(tensors or [external()])
    model.graph.node[0].output[1] = "smooth"
    model.graph.node.append(onnx.helper.make_node("Add", ["smooth", "w"], ["y"]))
    return model


def written(folder: Path, model: onnx.ModelProto | None = None, files: object = None) -> Path:
    path = folder / "a.onnx"
    path.write_bytes(reseal(graph() if model is None else model, toy(files)))  # type: ignore[arg-type]
    (folder / NAME).write_bytes(CONTENT)
    return path


def test_a_model_with_its_weights_beside_it(tmp_path, rng):
    path = written(tmp_path)
    model, plain = streamssm.load(path), streamssm.load(TOYS["ema"]().write(tmp_path))
    x = rng.standard_normal((9, 2)).astype(np.float32)
    assert np.array_equal(model.scan(x), plain.scan(x) + WEIGHTS)
    assert list(model.file.side) == [NAME]
    assert model.file.nbytes == path.stat().st_size + len(CONTENT)


def test_both_files_may_be_moved_and_reached_through_a_link(tmp_path):
    path = written(tmp_path)
    home = tmp_path / "elsewhere"
    home.mkdir()
    for file in (path, tmp_path / NAME):
        shutil.move(file, home)
    (tmp_path / "link.onnx").symlink_to(home / "a.onnx")
    streamssm.load(tmp_path / "link.onnx")
    (home / "a.onnx").rename(home / "b.onnx")
    streamssm.load(home / "b.onnx")


def test_the_folder_of_the_process_does_not_matter(tmp_path, monkeypatch):
    path = written(tmp_path)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    streamssm.load(path)


# What the manifest says of the file.


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "/etc/passwd", "sub/a.data", "..\\secret", "C:secret", "..", ".", "", "*/x"),
        *("a\nb", "a\0b", "a" * 256, "a\u202eb"),
    ],
)
def test_names_that_are_not_bare_are_refused(tmp_path, name):
    with pytest.raises(ManifestError, match=r"in the model's own folder|cannot be read"):
        read_model_file(written(tmp_path, files=(recorded(name=name),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "cannot be read"),
        ({"size": -1}, "cannot be read"),
        ({"sha256": "0" * 63}, "cannot be read"),
        ({"sha256": "../" + "0" * 61}, "cannot be read"),
        ({"size": 1 << 62}, "records 4611686018427387904"),
        ({"size": len(CONTENT) - 1}, "cut short or of another model"),
        ({"sha256": "ab" * 32}, "has sha256"),
    ],
)
def test_what_is_recorded_of_it_must_hold(tmp_path, change, message):
    with pytest.raises(ModelFileError, match=message):
        read_model_file(written(tmp_path, files=(recorded(**change),)))


def test_one_file_twice_and_a_file_for_nothing_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="twice"):
        read_model_file(written(tmp_path, files=(recorded(), recorded())))
    with pytest.raises(ModelFileError, match=r"records 'b.data' and keeps nothing there"):
        read_model_file(written(tmp_path, files=(recorded(), recorded(name="b.data"))))


# What lies in the folder.


def damage_missing(side: Path) -> None:
    side.unlink()


def damage_cut_short(side: Path) -> None:
    side.write_bytes(CONTENT[:-1])


def damage_longer(side: Path) -> None:
    side.write_bytes(CONTENT + b"\0")


def damage_one_bit(side: Path) -> None:
    side.write_bytes(CONTENT[:-1] + b"\1")


def damage_empty(side: Path) -> None:
    side.write_bytes(b"")


def damage_folder(side: Path) -> None:
    side.unlink()
    side.mkdir()


def damage_link_out(side: Path) -> None:
    secret = side.parent.parent / "secret"
    secret.write_bytes(CONTENT)  # the right content does not help
    side.unlink()
    side.symlink_to(secret)


def damage_link_inside(side: Path) -> None:
    side.rename(side.with_name("real"))
    side.symlink_to("real")


def damage_dangling(side: Path) -> None:
    side.unlink()
    side.symlink_to("nowhere")


def damage_pipe(side: Path) -> None:
    side.unlink()
    os.mkfifo(side)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (damage_missing, "No such file.*copy both files together"),
    (damage_cut_short, "has 127 bytes, the model records 128"),
    (damage_longer, "has 129 bytes"),
    (damage_one_bit, "has sha256"),
    (damage_empty, "has 0 bytes"),
    (damage_folder, "no plain file|cannot be read"),
    (damage_link_out, "is a link"),
    (damage_link_inside, "is a link"),
    (damage_dangling, "is a link"),
    (damage_pipe, "no plain file"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_or_replaced_file_is_refused(tmp_path, damage, message):
    folder = tmp_path / "model"
    folder.mkdir()
    path = written(folder)
    damage(folder / NAME)
    with pytest.raises(ModelFileError, match=message):
        streamssm.load(path)


# What the graph says of its tensors.


def doubled(tensor: onnx.TensorProto, key: str, value: str) -> onnx.TensorProto:
    tensor.external_data.add(key=key, value=value)
    return tensor


def with_values(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.raw_data = WEIGHTS.tobytes()
    return tensor


def said_to_be_inside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = WEIGHTS.tobytes()
    return tensor


def without_data_type(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.ClearField("data_type")
    return tensor


OTHER_FORM = "in a form that is not ours"
TENSORS: dict[str, tuple[Callable[[], onnx.TensorProto], str]] = {
    "another file": (lambda: external(entries=place(location="b.data")), "records no hash of it"),
    "the parent": (lambda: external(entries=place(location="../" + NAME)), "records no hash of it"),
    "a path": (lambda: external(entries=place(location="./" + NAME)), "records no hash of it"),
    "memory": (lambda: external(entries=place(location="*/_ORT_MEM_ADDR_/*")), "records no hash of it"),
    "past the end": (lambda: external(entries=place(offset="128")), "bytes 128 to 136"),
    "over the end": (lambda: external(entries=place(offset="64", length="72"), dims=(18,)), "64 to 136"),
    "far away": (lambda: external(entries=place(offset=str(10**17))), "to 1000000000"),
    "huge number": (lambda: external(entries=place(offset="9" * 30)), "no count of bytes"),
    "negative offset": (lambda: external(entries=place(offset="-64")), "no count of bytes"),
    "negative length": (lambda: external(entries=place(length="-8")), "no count of bytes"),
    "float": (lambda: external(entries=place(offset="64.0")), "no count of bytes"),
    "spaces": (lambda: external(entries=place(offset=" 64")), "no count of bytes"),
    "other digits": (lambda: external(entries=place(offset="６４")), "no count of bytes"),
    "not aligned": (lambda: external(entries=place(offset="68")), "bytes 68 to 76"),
    "length too short": (lambda: external(entries=place(length="4")), "which is not its size"),
    "length too long": (lambda: external(entries=place(length="64")), "which is not its size"),
    "negative shape": (lambda: external(dims=(-1, -2)), "which is not its size"),
    "overflowing shape": (lambda: external(dims=(2**62, 2**62, 2)), "which is not its size"),
    "no length": (lambda: external(entries=place()[:2]), OTHER_FORM),
    "no offset": (lambda: external(entries=[place()[0], place()[2]]), OTHER_FORM),
    "nothing": (lambda: external(entries=[]), OTHER_FORM),
    "two places": (lambda: doubled(external(), "location", "../secret"), OTHER_FORM),
    "two offsets": (lambda: doubled(external(), "offset", "0"), OTHER_FORM),
    "unknown key": (lambda: doubled(external(), "checksum", "1"), OTHER_FORM),
    "values too": (lambda: with_values(external()), OTHER_FORM),
    "inside after all": (lambda: said_to_be_inside(external()), OTHER_FORM),
    "no type": (lambda: without_data_type(external()), "which is not its size"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_lies_elsewhere_than_it_may_is_refused(tmp_path, case):
    make, message = TENSORS[case]
    with pytest.raises(ModelFileError, match=message):
        streamssm.load(written(tmp_path, graph(make())))


def test_overlapping_tensors_are_refused(tmp_path):
    for entries in (place(), place(offset="0", length="72")):
        dims = (int(dict(entries)["length"]) // 4,)
        with pytest.raises(ModelFileError, match="in one place"):
            read_model_file(written(tmp_path, graph(external(), external("v", entries, dims))))


def nested(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph()
    body = onnx.helper.make_graph([], "body", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    return model


def attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph()
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["z"], value=tensor))
    return model


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph()
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(function("streamssm", "Gate", [node]))
    return model


def sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph()
    model.graph.sparse_initializer.add(values=tensor, dims=[2])
    return model


def in_training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph()
    model.training_info.add().initialization.initializer.append(tensor)
    return model


@pytest.mark.parametrize("put", [nested, attribute, in_function, sparse, in_training])
def test_only_weights_of_the_main_graph_may_lie_elsewhere(tmp_path, put):
    with pytest.raises(ModelFileError, match="keeps a constant in another file"):
        read_model_file(written(tmp_path, put(external("v", place(offset="0")))))


# Between the hash and the opening.


def swapped(side: Path) -> None:
    other = side.with_name("other")
    other.write_bytes(CONTENT[::-1])
    os.replace(other, side)


def swapped_and_back(side: Path) -> None:
    kept = side.with_name("kept")
    side.rename(kept)
    side.write_bytes(CONTENT[::-1])
    os.replace(kept, side)


def overwritten(side: Path) -> None:
    with side.open("r+b") as file:
        file.seek(OFFSET)
        file.write(bytes(8))


def linked(side: Path) -> None:
    side.rename(side.with_name("real"))
    side.symlink_to("real")


@pytest.mark.parametrize("which", [NAME, "a.onnx"])
@pytest.mark.parametrize("attack", [swapped, swapped_and_back, overwritten, linked, damage_missing])
def test_a_file_changed_after_it_was_hashed_is_noticed(tmp_path, monkeypatch, attack, which):
    path = written(tmp_path)
    read = onnx_file.read_model_file

    def interfere(path: Path):
        file = read(path)
        attack(tmp_path / which)
        return file

    monkeypatch.setattr("streamssm.model.read_model_file", interfere)
    with pytest.raises(IntegrityError, match="was changed while"):
        streamssm.load(path)


def test_what_was_hashed_is_what_is_read(tmp_path):
    file = read_model_file(written(tmp_path))
    swapped(tmp_path / NAME)
    assert bytes(file.side[NAME].data) == CONTENT
    with pytest.raises(IntegrityError, match="was changed while"):
        file.check_unchanged()


def test_reading_needs_no_backend(tmp_path):
    code = (
        "import sys; from streamssm.onnx_file import read_model_file; read_model_file(sys.argv[1]);"
        "sys.exit(bool({'onnx', 'onnxruntime', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code, os.fspath(written(tmp_path))], check=True)


def test_a_runtime_that_would_not_find_the_weights_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path)
    monkeypatch.setattr("onnxruntime.__version__", "1.20.1")
    with pytest.raises(BackendError, match=r"needs onnxruntime 1.21 or later; 1.20.1 .*pip install"):
        streamssm.load(path)
