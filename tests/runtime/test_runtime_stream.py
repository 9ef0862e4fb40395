"""One stream: what it refuses, what it counts, what it gives away."""

from __future__ import annotations

import copy
import gc
import os
import sys

import numpy as np
import pytest
from toy_models import TOYS, named, same_bytes

from streamssm.chunks import ChunkRule
from streamssm.errors import BackendError, InputError, OutputError, StreamEndedError, UsageError
from streamssm.manifest import Input


def nan_at(shape, index, value=np.nan):
    x = np.zeros(shape, np.float32)
    x[index] = value
    return x


REFUSED = [
    ("ema", np.zeros((3, 2)), "float64.*takes float32.*astype"),
    ("ema", [[0.0, 1.0]], "float64"),
    ("ema", np.zeros((3, 2), np.float16), "float16"),
    ("ema", np.zeros((3, 2), ">f4"), ">f4"),
    ("ema", np.zeros((3, 2), bool), "bool"),
    ("ema", np.zeros((3, 2), object), "object"),
    ("ema", "audio", "the stream takes"),
    ("ema", None, "the stream takes"),
    ("ema", [[1.0], [1.0, 2.0]], "no array"),
    ("ema", np.float32(1), r"shape \[\]"),
    ("ema", np.zeros(2, np.float32), r"shape \[2\].*\[T, 2\]"),
    ("ema", np.zeros((3, 1), np.float32), r"shape \[3, 1\]"),
    ("ema", np.zeros((2, 7), np.float32), "transpose"),
    ("ema", np.zeros((5, 3, 2), np.float32), "batch=5"),
    ("ema", np.ma.masked_equal(np.zeros((3, 2), np.float32), 0), "masked"),
    ("ema", nan_at((3, 2), (1, 0)), r"nan at index \[1, 0\].*1 such of 6"),
    ("ema", nan_at((4, 2), (3, 1)), r"nan at index \[3, 1\]"),  # a whole block: the short way
    ("ema", nan_at((4, 2), (0, 0), np.inf), "inf at index"),
    ("ema", nan_at((400, 2), (399, 1), -np.inf), "-inf at index"),
    ("frames", np.zeros(8, np.int16), r"int16.*/ 32768"),
    ("frames", np.zeros(8, np.int32), r"int32.*/ 2147483648"),
    ("tokens", np.array([0, 5]), r"5 at index \[1\].*from 0 to 4"),
    ("tokens", np.array([-1]), r"-1 at index \[0\]"),
    ("tokens", np.array([255], np.uint8), "255 at index"),
    ("tokens", np.array([2**63], np.uint64), "9223372036854775808"),
    ("tokens", np.array([1.0]), "takes integers"),
    ("tokens", np.array([True]), "takes integers"),
]


@pytest.mark.parametrize(("name", "chunk", "message"), REFUSED)
@pytest.mark.parametrize("before", [0, 3])
def test_a_bad_chunk_is_refused_whole(opened, rng, name, chunk, message, before):
    toy, model = opened(name)
    stream = model.stream()
    stream.push(toy.random(before, rng))
    state = stream.snapshot()
    with pytest.raises(InputError, match=message):
        stream.push(chunk)
    assert stream.snapshot() == state
    twin, x = model.resume(state), toy.random(21, rng)
    assert same_bytes(named(toy, stream.push(x)), named(toy, twin.push(x)))


def test_a_batch_has_its_own_shape(opened):
    _, model = opened("ema")
    stream = model.stream(batch=3)
    with pytest.raises(InputError, match="a chunk for every row"):
        stream.push(np.zeros((4, 2), np.float32))
    with pytest.raises(InputError, match=r"takes \[3, T, 2\]"):
        stream.push(np.zeros((2, 4, 2), np.float32))
    with pytest.raises(InputError, match=r"nan at index \[2, 1, 0\]"):
        stream.push(nan_at((3, 4, 2), (2, 1, 0)))
    with pytest.raises(InputError, match="batch of 0"):
        model.scan(np.zeros((0, 4, 2), np.float32))


@pytest.mark.parametrize("items", [3, 4])
def test_large_finite_values_are_welcome(opened, items):
    _, model = opened("ema")
    x = np.full((items, 2), 3e38, np.float32)
    assert np.isfinite(model.scan(x)).all()


@pytest.mark.parametrize("items", [3, 4, 9])
def test_nan_enters_if_it_may(opened, items):
    _, model = opened("ema")
    stream = model.stream(allow_nonfinite=True)
    y = np.concatenate([stream.push(nan_at((items, 2), (1, 0))), stream.flush()])
    assert np.isnan(y[1:, 0]).all()
    assert np.isfinite(y[:, 1]).all()
    stream.reset()
    assert np.isfinite(stream.push(np.zeros((4, 2), np.float32))).all()
    with pytest.raises(InputError, match="float64"):
        stream.push(np.zeros((4, 2)))
    twin = model.resume(stream.snapshot())
    assert np.isnan(twin.push(nan_at((4, 2), (0, 0)))).any()
    with pytest.raises(InputError):
        model.resume(stream.snapshot(), allow_nonfinite=False).push(nan_at((4, 2), (0, 0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64])
def test_tokens_of_any_integer_type(opened, rng, dtype):
    toy, model = opened("tokens")
    x = toy.random(20, rng)
    assert same_bytes(named(toy, model.scan(x.astype(dtype))), named(toy, model.scan(x)))


def test_integers_without_a_vocabulary_may_be_negative():
    rule = ChunkRule(Input("counts", "features", "int64"), None, False)
    assert rule.accept(np.array([-5, 2**62])).tolist() == [[-5, 2**62]]
    with pytest.raises(InputError, match="largest"):
        rule.accept(np.array([2**63], np.uint64))


def test_what_numpy_can_read_is_a_chunk(opened):
    _, model = opened("tokens")
    assert model.stream().push([0, 1, 4]).shape == (3, 2)


# Positions, the end, empty chunks.


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("batch", [None, 2])
def test_empty_chunks_and_empty_streams(opened, rng, name, batch):
    toy, model = opened(name)
    stream = model.stream(batch=batch)
    for y in (stream.push(toy.random(0, rng, batch)), stream.flush(), stream.flush()):
        for output in toy.manifest.outputs:
            lead = () if batch is None else (batch,)
            assert named(toy, y)[output.name].shape == (*lead, 0, *output.shape)
            assert named(toy, y)[output.name].dtype == np.float32
    assert stream.ended
    assert stream.position == 0


def test_position_counts_what_was_accepted(opened, rng):
    toy, model = opened("frames")
    stream, seen = model.stream(block=8), 0
    for items in (3, 0, 5, 8, 16, 21, 1):
        stream.push(toy.random(items, rng))
        seen += items
        assert (stream.position, stream.pending) == (seen, seen % 8)
    stream.flush()
    assert (stream.position, stream.pending, stream.ended) == (seen, 0, True)


def test_a_flushed_stream_takes_no_more(opened, rng):
    toy, model = opened("ahead")
    stream = model.stream()
    stream.push(toy.random(9, rng))
    assert stream.flush().shape == (2, 2)
    assert stream.flush().shape == (0, 2)
    for items in (0, 3):
        with pytest.raises(StreamEndedError, match=r"item 9.*reset"):
            stream.push(toy.random(items, rng))
    for ended in (stream.fork(), model.resume(stream.snapshot())):
        with pytest.raises(StreamEndedError):
            ended.push(toy.random(3, rng))


def test_several_outputs_come_by_name(opened, rng):
    toy, model = opened("pair")
    y = model.stream().push(toy.random(12, rng))
    assert {name: v.shape for name, v in y.items()} == {"same": (6, 1), "sums": (2,)}


@pytest.mark.parametrize(
    ("block", "batch"), [(0, None), (-4, None), (6, None), (4.0, None), (None, 0), (None, "2")]
)
def test_block_and_batch_are_checked(opened, block, batch):
    _, model = opened("frames")
    with pytest.raises(UsageError, match=r"block = .*hop of 4|block = 4.0|batch = "):
        model.stream(block, batch)


# Ownership.


@pytest.mark.parametrize("name", ["ema", "pair", "frames"])
@pytest.mark.parametrize("batch", [None, 2])
def test_results_belong_to_the_caller(opened, rng, name, batch):
    toy, model = opened(name)
    block, axis = toy.manifest.block, 0 if batch is None else 1
    x = toy.random(block * 12, rng, batch)
    chunks, kept, copies = np.split(x, 12, axis), [], []
    stream = model.stream(batch=batch)
    for chunk in chunks:
        mine = chunk.copy()
        y = named(toy, stream.push(mine))
        mine[...] = 99  # the stream must not look at the chunk again
        kept.append(y)
        copies.append(copy.deepcopy(y))
        assert all(v.flags.owndata and v.flags.writeable and v.flags.c_contiguous for v in y.values())
    assert all(same_bytes(a, b) for a, b in zip(kept, copies, strict=True))
    for y in kept:
        for v in y.values():
            v[...] = -1  # nor at a result
    tail = named(toy, stream.flush())
    other = model.stream(batch=batch)
    other.push(x)
    assert same_bytes(tail, named(toy, other.flush()))


def test_copies_are_forks(opened, rng):
    toy, model = opened("ema")
    stream = model.stream()
    stream.push(toy.random(6, rng))
    for twin in (copy.copy(stream), copy.deepcopy(stream)):
        before = twin.snapshot()
        stream.push(toy.random(9, rng))
        assert twin.snapshot() == before


def test_repr_says_where_it_is(opened, rng):
    toy, model = opened("ahead")
    stream = model.stream(batch=2)
    stream.push(toy.random(50, rng, 2))
    assert repr(stream) == "<Stream of ahead: item 50 (0.500 s), 2 pending, block 3, batch 2>"
    stream.flush()
    assert "ended" in repr(stream)
    assert "hop" not in repr(model)
    assert repr(model) == (
        "<Model ahead: features [2] at 100/s -> y [2] x 1; block 3, look-ahead 2, 32 bytes of state, cpu>"
    )


# Failures of the backend, interrupts, memory.


def test_a_failed_run_leaves_the_stream_as_it_was(tmp_path, rng):
    import streamssm

    toy = TOYS["tokens"]()
    # the manifest admits more tokens than the embedding has: the graph fails on 7
    spec = toy.manifest.input.__class__("ids", "tokens", "int64", (), vocabulary=9)
    model = streamssm.load(toy.write(tmp_path, input=spec))
    for block in (1, 4):
        stream = model.stream(block)
        stream.push(toy.random(6, rng))
        before, x = stream.snapshot(), toy.random(12, rng)
        # on the first run of a push, on a later one, on the last
        for bad in ([7, 0, 0, 0], [0, 1, 7, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0]):
            with pytest.raises(BackendError, match="the stream is as it was") as caught:
                stream.push(np.array(bad))
            assert "\n" not in str(caught.value)
            assert stream.snapshot() == before
        assert same_bytes(named(toy, stream.push(x)), named(toy, model.resume(before).push(x)))
    stream.push(np.array([7]))  # pending, so the flush meets it
    before = stream.snapshot()
    with pytest.raises(BackendError):
        stream.flush()
    assert stream.snapshot() == before
    assert not stream.ended


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("end", [False, True])
def test_an_interrupt_leaves_the_stream_as_it_was(opened, rng, monkeypatch, at, end):
    toy, model = opened("ahead")
    stream = model.stream(block=1)
    stream.push(toy.random(7, rng))
    before, lane, calls = stream.snapshot(), stream._lane, []
    step = lane.step

    def interrupted() -> None:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(lane, "step", interrupted)
    if end and at == 3:
        stream.flush()  # only two steps are left to run
        return
    with pytest.raises(KeyboardInterrupt):
        stream.flush() if end else stream.push(toy.random(5, rng))
    assert stream.snapshot() == before


def test_saving_where_one_cannot(opened, tmp_path):
    _, model = opened("ema")
    with pytest.raises(OutputError, match="cannot be written"):
        model.stream().save(tmp_path / "missing" / "a.state")
    assert not list(tmp_path.iterdir())


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("pushes", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_is_flat(opened, pushes):
    _, model = opened("twice")
    for block, chunk in ((16, 16), (16, 5)):
        stream, x = model.stream(block), np.ones(chunk, np.float32)
        for _ in range(2000):
            stream.push(x)
        # a leak grows each time; what else lives in this process may grow once
        growths = []
        for _ in range(3):
            gc.collect()
            blocks, size = sys.getallocatedblocks(), resident()
            for _ in range(pushes // 6):
                stream.push(x)
            gc.collect()
            assert sys.getallocatedblocks() - blocks < 500
            growths.append(resident() - size)
        assert min(growths) < 1 << 18
