"""The promise on an exported model: Mamba, Mamba-2 and sliding-window attention in one file."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamssm

CONFIG = {
    "input": {"kind": "features", "size": 4, "rate": 50},
    "pattern": ["mamba", "mamba2", "swa"],
    "d_model": 16,
    "mamba": {"d_state": 4},
    "mamba2": {"d_state": 8, "headdim": 8},
    "swa": {"window": 5, "num_heads": 2},
    "head": {"size": 3, "activation": "softmax"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch = pytest.importorskip("torch")
    exporter = pytest.importorskip("streamssm.export")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "hybrid.onnx"
    exporter.export(exporter.build(CONFIG), path, rate=50.0)
    return streamssm.load(path)


def items(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 3, 8])
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 17), max_size=8), resume=st.booleans())
def test_any_split_gives_the_same_bytes(model, block, cuts, resume):
    x, stream, at, parts = items(sum(cuts)), model.stream(block), 0, []
    for cut in cuts:
        parts.append(stream.push(x[at : at + cut]))
        at += cut
        stream = model.resume(stream.snapshot()) if resume else stream.fork()
    parts.append(stream.flush())
    assert np.concatenate(parts).tobytes() == model.scan(x, block).tobytes()


def test_blocks_and_batches_agree(model):
    x = items(40)
    whole = model.scan(x, 40)
    for block in (1, 7, 16):
        np.testing.assert_allclose(model.scan(x, block), whole, rtol=1e-4, atol=1e-6)
    both = model.scan(np.stack([x, items(40, 1)]))
    np.testing.assert_allclose(both[0], whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(both[1], model.scan(items(40, 1)), rtol=1e-4, atol=1e-6)


def test_the_golden_sample_is_met(model):
    x, outputs = model.golden()
    ((name, y),) = outputs.items()
    assert model.manifest.outputs[0].name == name
    np.testing.assert_allclose(model.scan(x), y, rtol=1e-4, atol=1e-6)


def test_streams_in_threads(model):
    wanted = [model.scan(items(200, seed), 4).tobytes() for seed in range(2)]
    found = ["", ""]

    def work(seed: int) -> None:
        stream, x = model.stream(4), items(200, seed)
        parts = [stream.push(x[at : at + 5]) for at in range(0, 200, 5)]
        found[seed] = np.concatenate([*parts, stream.flush()]).tobytes()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_what_a_read_lacks_at_its_end_is_unknown():
    model, bases = streamssm.load("host"), np.random.default_rng(0).integers(0, 4, 150)
    stream, whole = model.stream(), model.stream()
    expected = whole.push(np.concatenate([bases, np.full(50, 4)]))
    found = np.concatenate([stream.push(bases), stream.flush()])
    np.testing.assert_array_equal(found, expected)
    pool = model.pool(1)
    pool.open("read")
    pool.push("read", bases)
    pool.flush("read")
    answers = [y for _ in range(2) for _, y in pool.step()]
    np.testing.assert_array_equal(np.concatenate(answers), expected)
