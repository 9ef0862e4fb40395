"""Any split of the input gives the same bytes as the whole, whatever happens in between."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import TOYS, joined, named, same_bytes

CASES = [
    ("ema", 1),
    ("ema", 3),
    ("ema", 16),
    ("frames", 4),
    ("frames", 12),
    ("ahead", 1),
    ("ahead", 3),
    ("tokens", 1),
    ("tokens", 5),
    ("pair", 4),
    ("pair", 12),
    ("twice", 1),
    ("twice", 7),
]


@pytest.mark.parametrize(("name", "block"), CASES)
@pytest.mark.parametrize("items", [0, 1, 2, 3, 4, 5, 11, 24, 49])
def test_scan_equals_the_reference(opened, rng, name, block, items):
    toy, model = opened(name)
    x = toy.random(items, rng)
    found, wanted = named(toy, model.scan(x, block)), toy.reference(x)
    for key, y in wanted.items():
        assert found[key].shape == y.shape
        np.testing.assert_allclose(found[key], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "block"), CASES)
def test_every_split_in_two_gives_the_same_bytes(opened, rng, name, block):
    toy, model = opened(name)
    x = toy.random(26, rng)
    whole = named(toy, model.scan(x, block))
    for cut in range(len(x) + 1):
        stream = model.stream(block)
        parts = [stream.push(x[:cut]), stream.push(x[cut:]), stream.flush()]
        assert same_bytes(joined(toy, parts), whole), cut


STEPS = st.lists(
    st.tuples(st.sampled_from(["push", "push", "push", "resume", "fork", "refuse"]), st.integers(0, 21)),
    max_size=10,
)


@pytest.mark.parametrize(("name", "block"), CASES)
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(steps=STEPS, batch=st.sampled_from([None, None, 1, 3]), seed=st.integers(0, 99))
def test_any_history_gives_the_same_bytes(opened, name, block, steps, batch, seed):
    """Pushes of any length, snapshots, forks that go elsewhere, refused chunks."""
    toy, model = opened(name)
    rng = np.random.default_rng(seed)
    axis = 0 if batch is None else 1
    x = toy.random(sum(n for what, n in steps if what == "push"), rng, batch)
    stream, at, parts = model.stream(block, batch), 0, []
    for what, n in steps:
        if what == "push":
            parts.append(stream.push(x[at : at + n] if batch is None else x[:, at : at + n]))
            at += n
        elif what == "resume":
            stream = model.resume(stream.snapshot())
        elif what == "fork":
            twin = stream.fork()
            stream.push(toy.random(n, rng, batch))  # the original goes elsewhere
            stream.reset()
            stream = twin
        else:
            with pytest.raises(ValueError, match="chunk"):
                stream.push(np.full((2, 2, 2, 2, 2), np.nan))
        assert stream.position == at
        assert stream.pending == at % block
    parts.append(stream.flush())
    assert same_bytes(joined(toy, parts, axis), named(toy, model.scan(x, block)))


@pytest.mark.parametrize(("name", "block"), CASES)
def test_a_reset_stream_is_a_new_stream(opened, rng, name, block):
    toy, model = opened(name)
    x, stream = toy.random(23, rng), model.stream(block)
    fresh = stream.snapshot()
    for flushed in (False, True):
        stream.push(toy.random(17, rng))
        if flushed:
            stream.flush()
        stream.reset()
        assert stream.snapshot() == fresh
        parts = [stream.push(x), stream.flush()]
        assert same_bytes(joined(toy, parts), named(toy, model.scan(x, block)))
        stream.reset()


@pytest.mark.parametrize("name", TOYS)
def test_rows_of_a_batch_do_not_mix(opened, rng, name):
    toy, model = opened(name)
    x = toy.random(19, rng, batch=3)
    together = named(toy, model.scan(x))
    for row in range(3):
        alone = named(toy, model.scan(x[row]))
        for key, y in alone.items():
            assert together[key][row].shape == y.shape
            np.testing.assert_allclose(together[key][row], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_blocks_agree(opened, rng, name):
    toy, model = opened(name)
    x = toy.random(50, rng)
    first = named(toy, model.scan(x, toy.manifest.input.hop))
    for hops in (2, 3, 100):
        other = named(toy, model.scan(x, hops * toy.manifest.input.hop))
        for key, y in first.items():
            np.testing.assert_allclose(other[key], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ema", "frames", "pair"])
@pytest.mark.parametrize(("before", "after"), [(24, 4), (4, 24), (12, 8)])
def test_resuming_at_another_block_loses_nothing(opened, rng, name, before, after):
    toy, model = opened(name)
    x, stream = toy.random(63, rng), model.stream(before)
    parts = [stream.push(x[:47])]
    stream = model.resume(stream.snapshot(), block=after)
    assert (stream.position, stream.pending, stream.block) == (47, 47 % before, after)
    # pending items of a larger block survive a snapshot, a fork and a refused chunk
    stream = model.resume(stream.snapshot()).fork()
    with pytest.raises(ValueError, match="chunk"):
        stream.push(np.zeros((2, 2, 2, 2), np.float32))
    assert stream.pending == 47 % before
    parts += [stream.push(x[47:48]), stream.push(x[48:]), stream.flush()]
    for key, y in joined(toy, parts).items():
        np.testing.assert_allclose(y, toy.reference(x)[key], rtol=1e-4, atol=1e-5)


def test_a_backlog_can_be_flushed_at_once(opened, rng):
    toy, model = opened("frames")
    x, stream = toy.random(23, rng), model.stream(24)
    stream.push(x)
    y = model.resume(stream.snapshot(), block=4).flush()
    np.testing.assert_allclose(y, toy.reference(x)["y"], rtol=1e-4, atol=1e-5)


def test_a_backlog_precedes_a_whole_block_and_ends_with_a_reset(opened, rng):
    toy, model = opened("frames")
    x, stream = toy.random(24, rng), model.stream(48)
    stream.push(x[:20])
    resumed = model.resume(stream.snapshot(), block=4)
    y = np.concatenate([resumed.push(x[20:]), resumed.flush()])
    np.testing.assert_allclose(y, toy.reference(x)["y"], rtol=1e-4, atol=1e-5)
    resumed = model.resume(stream.snapshot(), block=4)
    resumed.reset()
    assert resumed.snapshot() == model.stream(4).snapshot()


def test_strided_chunks_count_by_value(opened, rng):
    toy, model = opened("ema")
    x = toy.random(40, rng)
    strided = np.asfortranarray(np.repeat(x, 2, axis=0))[::2]
    assert not strided.flags.c_contiguous
    assert same_bytes(named(toy, model.scan(strided)), named(toy, model.scan(x)))
    stream = model.stream(4)
    parts = [stream.push(strided[at : at + 4]) for at in range(0, 40, 4)] + [stream.flush()]
    assert same_bytes(joined(toy, parts), named(toy, model.scan(x)))


def test_streams_of_one_model_run_in_threads(opened, rng):
    toy, model = opened("ema")
    inputs = [toy.random(3000, rng) for _ in range(4)]
    wanted = [named(toy, model.scan(x, 3)) for x in inputs]
    found: dict[int, dict[str, np.ndarray]] = {}
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        start.wait()
        stream, parts = model.stream(3), []
        for at in range(0, 3000, 10):
            parts.append(stream.push(inputs[index][at : at + 10]))
            if at % 500 == 0:
                stream = model.resume(stream.fork().snapshot())
        found[index] = joined(toy, [*parts, stream.flush()])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bytes(found[i], wanted[i]) for i in range(len(inputs)))
