"""Snapshots: what comes back is the stream that was saved, or an error."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
import safetensors.numpy
from toy_models import TOYS, named, same_bytes

import streamssm
from streamssm.errors import OutputError, SnapshotError, UsageError


@pytest.fixture
def saved(opened, rng):
    """A stream of the EMA toy with pending items, and its snapshot."""
    toy, model = opened("ema")
    stream = model.stream(block=4)
    stream.push(toy.random(7, rng))
    return toy, model, stream, stream.snapshot(extra={"note": "é"})


def test_a_snapshot_is_plain_safetensors(saved):
    _, model, stream, data = saved
    tensors = safetensors.numpy.load(data)
    assert {name: (v.dtype.name, v.shape) for name, v in tensors.items()} == {
        "state.h": ("float32", (1, 2)),
        "state.count": ("int64", (1,)),
        "state.none": ("float32", (1, 0, 2)),
        "pending": ("float32", (1, 3, 2)),
    }
    assert tensors["state.count"] == [4]
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    digest = metadata.pop("digest")
    assert metadata == {
        "format": "streamssm.snapshot",
        "version": "1",
        "model": "ema",
        "sha256": model.sha256,
        "position": "7",
        "block": "4",
        "batch": "none",
        "ended": "0",
        "allow_nonfinite": "0",
        "extra.note": "é",
    }
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    assert data == stream.snapshot(extra={"note": "é"})


def test_extra_text_comes_back_once(saved):
    _, model, _, data = saved
    stream = model.resume(data)
    assert stream.extra == {"note": "é"}
    assert model.resume(stream.snapshot()).extra == {}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_from_any_bytes(saved, kind):
    _, model, stream, data = saved
    assert model.resume(kind(data)).snapshot() == stream.snapshot()


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("batch", [None, 2])
def test_every_toy_comes_back(opened, rng, tmp_path, name, batch):
    toy, model = opened(name)
    stream = model.stream(batch=batch)
    stream.push(toy.random(13, rng, batch))
    path = tmp_path / "a.state"
    stream.save(path)
    twin, x = model.resume(str(path)), toy.random(10, rng, batch)
    assert repr(twin) == repr(stream)
    assert same_bytes(named(toy, twin.push(x)), named(toy, stream.push(x)))
    assert same_bytes(named(toy, twin.flush()), named(toy, stream.flush()))
    assert model.resume(stream.snapshot()).ended


def test_damage_of_any_byte_is_seen(saved):
    _, model, _, data = saved
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF, 0x20):
            damaged = bytearray(data)
            damaged[at] ^= flip
            with pytest.raises(SnapshotError):
                model.resume(damaged)


def test_every_part_is_too_short(saved):
    _, model, _, data = saved
    for size in range(len(data)):
        with pytest.raises(SnapshotError):
            model.resume(data[:size])
    for tail in (b"\0", b" ", data):
        with pytest.raises(SnapshotError):
            model.resume(data + tail)


def forged(data: bytes, tensors=None, **changes) -> bytes:
    """A snapshot with other content and a digest that fits."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"] | changes | {"digest": "0" * 64}
    metadata = {key: text for key, text in metadata.items() if text is not None}
    found = safetensors.numpy.load(data) | (tensors or {})
    found = {name: v for name, v in found.items() if v is not None}
    out = safetensors.numpy.save(found, metadata)
    return out.replace(b"0" * 64, hashlib.sha256(out).hexdigest().encode())


FORGERIES = [
    ({"version": "2"}, "version '2'.*upgrade"),
    ({"format": "other"}, "no streamssm snapshot"),
    ({"position": "-1"}, "position"),
    ({"position": "1e9"}, "position"),
    ({"position": "2"}, "at item 2 with 3 pending"),
    ({"block": "x"}, "block"),
    ({"batch": "2"}, r"wants float32 \[2, 2\]"),
    ({"ended": None}, "ended"),
    ({"sha256": "f" * 64}, "load the file it was made with"),
    ({"tensors": {"state.h": np.zeros((1, 3), np.float32)}}, r"\[1, 3\].*\[1, 2\]"),
    ({"tensors": {"state.h": np.zeros((1, 2))}}, "float64"),
    ({"tensors": {"state.more": np.zeros(1)}}, "state.more"),
    ({"tensors": {"state.h": None}}, "holds"),
    ({"tensors": {"pending": np.zeros((1, 3, 1), np.float32)}}, "pending"),
    ({"tensors": {"pending": np.zeros((), np.float32)}}, "pending"),
]


@pytest.mark.parametrize(("changes", "message"), FORGERIES)
def test_contradictions_are_refused(saved, changes, message):
    _, model, _, data = saved
    assert model.resume(forged(data)).position == 7
    with pytest.raises(SnapshotError, match=message):
        model.resume(forged(data, **changes))


def test_a_hop_is_never_cut(opened, rng):
    toy, model = opened("frames")
    stream = model.stream()
    stream.push(toy.random(9, rng))
    with pytest.raises(SnapshotError, match="both cannot be"):
        model.resume(forged(stream.snapshot(), position="10"))


def test_a_snapshot_belongs_to_one_file(saved, tmp_path):
    toy, _, _, data = saved
    other = streamssm.load(toy.write(tmp_path, description="another"))
    with pytest.raises(SnapshotError, match="load the file it was made with"):
        other.resume(data)


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\0" * 8, b"\xff" * 64, b"hello, this is a text"])
def test_foreign_bytes(saved, data):
    _, model, _, _ = saved
    with pytest.raises(SnapshotError):
        model.resume(data)


def test_a_foreign_safetensors_file(saved):
    _, model, _, _ = saved
    with pytest.raises(SnapshotError, match="no streamssm snapshot"):
        model.resume(safetensors.numpy.save({"a": np.zeros(3)}, {"format": "pt"}))


def test_files_that_cannot_be_read(saved, tmp_path):
    _, model, _, _ = saved
    for path in (tmp_path / "missing.state", tmp_path):
        with pytest.raises(SnapshotError, match="cannot be read"):
            model.resume(path)


def test_the_block_of_a_resumed_stream_is_checked(opened):
    _, model = opened("frames")
    with pytest.raises(UsageError, match="hop of 4"):
        model.resume(model.stream().snapshot(), block=6)


def test_saving_replaces_the_file_as_a_whole(saved, tmp_path, monkeypatch):
    _, _, stream, _ = saved
    path = tmp_path / "a.state"
    path.write_bytes(b"old")
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OutputError, match="No space left"):
        stream.save(path)
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    stream.save(path)
    assert path.read_bytes() == stream.snapshot()
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]


def test_the_file_has_the_usual_permissions(saved, tmp_path):
    _, _, stream, _ = saved
    before = os.umask(0o027)
    try:
        stream.save(tmp_path / "a.state")
    finally:
        os.umask(before)
    assert (tmp_path / "a.state").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_and_what_it_points_to_is_replaced(saved, tmp_path):
    _, _, stream, _ = saved
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    stream.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == stream.snapshot()


@pytest.mark.skipif(os.name != "posix", reason="no named pipes")
def test_what_is_no_file_is_not_replaced(saved, tmp_path):
    _, _, stream, _ = saved
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="cannot be replaced"):
        stream.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(OutputError, match="is a folder"):
        stream.save(tmp_path)


@pytest.mark.parametrize("extra", [{"a": 1}, {1: "a"}, {"a": None}])
def test_extra_that_could_not_be_read_back_is_refused_at_once(saved, extra):
    _, _, stream, _ = saved
    with pytest.raises(UsageError, match="a snapshot keeps strings"):
        stream.snapshot(extra)
