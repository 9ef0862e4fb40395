"""A pool's streams: the same bytes as alone, whatever the other streams do."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import TOYS, joined, named, same_bytes

from streamssm.errors import (
    BackendError,
    InputError,
    PoolFullError,
    QueueFullError,
    SnapshotError,
    StreamEndedError,
    UsageError,
)

CASES = [("ema", 1), ("ema", 3), ("frames", 12), ("ahead", 3), ("tokens", 5), ("pair", 4), ("twice", 7)]
SLOTS = 3


def alone(toy, model, block, x, cuts=()):
    """All results of a stream that has a pool of the same size for itself."""
    with model.pool(SLOTS, block) as pool:
        pool.open("only")
        parts = []
        for chunk in np.split(x, cuts):
            pool.push("only", chunk)
            parts += [y for _, y in pool.step()]
        pool.flush("only")
        while "only" in pool:
            parts += [y for _, y in pool.step()]
    return joined(toy, parts)


@pytest.mark.parametrize(("name", "block"), CASES)
@pytest.mark.parametrize("items", [0, 1, 5, 24, 37])
def test_a_slot_gives_what_a_stream_gives(opened, rng, name, block, items):
    toy, model = opened(name)
    x = toy.random(items, rng)
    found, wanted = alone(toy, model, block, x), named(toy, model.scan(x, block))
    for key, y in wanted.items():
        assert found[key].shape == y.shape
        np.testing.assert_allclose(found[key], y, rtol=1e-5, atol=1e-6)


def test_an_empty_pool_is_true(opened):
    _, model = opened("ema")
    with model.pool(SLOTS, 1) as pool:
        assert len(pool) == 0
        assert pool


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["push", "push", "rows", "step", "step", "move", "pause", "resume", "reset", "flush"]
        ),
        st.integers(0, SLOTS),
        st.integers(0, 17),
    ),
    max_size=40,
)


class History:
    """Operations on a pool by name, and what is expected of each key: all that it was given since its
    start, and all that it has returned."""

    def __init__(self, toy, model, block, pool, seed):
        self.toy, self.model, self.block, self.pool = toy, model, block, pool
        self.rng = np.random.default_rng(seed)
        self.given, self.parts = {}, {}

    def do(self, what, key, n):
        if what == "step":
            self.step()
        elif what == "rows":
            self.push_rows(n)
        elif key not in self.pool:
            self.open(key)
        elif what in ("pause", "resume", "flush"):
            getattr(self.pool, what)(key)
        elif not self.pool._slots[key].ending:
            getattr(self, what)(key, n)
        elif what == "push":
            with pytest.raises(StreamEndedError):
                self.pool.push(key, self.toy.random(n, self.rng))

    def open(self, key):
        if len(self.pool) < SLOTS:
            self.pool.open(key)
            self.start(key)
        else:
            with pytest.raises(PoolFullError, match="3 slots"):
                self.pool.open(key)

    def start(self, key):
        self.given[key], self.parts[key] = [self.toy.random(0, self.rng)], []

    def push(self, key, n):
        chunk = self.toy.random(n, self.rng)
        self.given[key].append(chunk.copy())
        self.pool.push(key, chunk)
        chunk[...] = 0  # the pool has its own copy

    def push_rows(self, n):
        keys = [key for key in self.pool if not self.pool._slots[key].ending]
        if keys:
            chunks = self.toy.random(n, self.rng, len(keys))
            self.pool.push_rows(keys, chunks)
            for key, chunk in zip(keys, chunks, strict=True):
                self.given[key].append(chunk)

    def reset(self, key, _):
        self.pool.reset(key)
        self.start(key)

    def move(self, key, _):
        """To another slot, perhaps."""
        saved = self.pool.snapshot(key)
        self.pool.close(key)
        self.pool.open(key, saved)

    def step(self):
        for key, y in self.pool.step():
            self.parts[key].append(y)
        for key in [key for key in self.given if key not in self.pool]:
            wanted = alone(self.toy, self.model, self.block, np.concatenate(self.given.pop(key)))
            assert same_bytes(joined(self.toy, self.parts.pop(key)), wanted)

    def end(self):
        for key in self.pool:
            self.pool.resume(key)
            self.pool.flush(key)
        while self.given:
            self.step()


@pytest.mark.parametrize(("name", "block"), CASES)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(operations=OPERATIONS, seed=st.integers(0, 99))
def test_any_history_gives_the_bytes_of_a_stream_alone(opened, name, block, operations, seed):
    """Streams join, leave, reset, pause and move between slots by snapshots, at different rates."""
    toy, model = opened(name)
    with model.pool(SLOTS, block) as pool:
        history = History(toy, model, block, pool, seed)
        for operation in operations:
            history.do(*operation)
        history.end()


@pytest.mark.parametrize("name", TOYS)
def test_snapshots_pass_between_streams_and_pools(opened, rng, name):
    toy, model = opened(name)
    block = model.manifest.input.hop * 4
    x = toy.random(block * 2 + 3, rng)
    stream = model.stream(block)
    stream.push(x)
    with model.pool(1, block) as pool:
        pool.open("a")
        pool.push("a", x)
        while pool.ready():
            pool.step()
        assert pool.snapshot("a") == stream.snapshot()
        pool.close("a")
        pool.open("b", stream.snapshot())
        assert pool.position("b") == len(x)
        assert pool.pending("b") == stream.pending
        pool.push("b", x)
        found = []
        while pool.ready():
            found += [y for _, y in pool.step()]
    assert same_bytes(joined(toy, found), named(toy, stream.push(x)))


def test_idle_rows_keep_their_state_to_the_byte(opened, rng):
    toy, model = opened("ema")
    with model.pool(4, 2) as pool:
        for key in range(4):
            pool.open(key)
            pool.push(key, toy.random(3, rng))
        pool.step()
        for active in ([0], [1, 2], [0, 1, 3], [0, 1, 2, 3]):
            before = {key: pool.snapshot(key) for key in range(4)}
            for key in active:
                pool.push(key, toy.random(2, rng))
            assert {key for key, _ in pool.step()} == set(active)
            for key in range(4):
                assert (pool.snapshot(key) == before[key]) == (key not in active)


def test_what_does_not_fit_is_refused_and_changes_nothing(opened, rng):
    toy, model = opened("ema")
    x = toy.random(4, rng)
    with model.pool(1, 2, limit=5) as pool:
        pool.open("a")
        pool.push("a", x)
        before = pool.snapshot("a")
        with pytest.raises(QueueFullError, match="4 items waiting and was given 2, its limit is 5"):
            pool.push("a", x[:2])
        with pytest.raises(InputError):
            pool.push("a", x.astype(np.float64))
        with pytest.raises(UsageError, match="already a stream 'a'"):
            pool.open("a")
        with pytest.raises(UsageError, match="no stream 'b'"):
            pool.push("b", x)
        with pytest.raises(SnapshotError):
            pool.open("b", b"not a snapshot")
        assert pool.snapshot("a") == before
        ended, rows = model.stream(2), model.stream(2, batch=2)
        ended.flush()
        pool.close("a")
        for snapshot, message in ((ended.snapshot(), "has ended"), (rows.snapshot(), "of 2 sequences")):
            with pytest.raises(UsageError, match=message):
                pool.open("b", snapshot)
        pool.open("b")  # the slot is still free


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots = 0"),
        ({"slots": 1, "block": 3, "limit": 2}, "limit = 2"),
        ({"slots": 1, "gather": -1.0}, "gather = -1"),
        ({"slots": 1, "gather": float("nan")}, "gather = nan"),
    ],
)
def test_bad_options_are_refused(opened, options, message):
    _, model = opened("ema")
    with pytest.raises(UsageError, match=message):
        model.pool(**options)


def test_a_failed_step_loses_nothing(tmp_path, rng):
    import streamssm

    toy = TOYS["tokens"]()
    spec = toy.manifest.input.__class__("ids", "tokens", "int64", (), vocabulary=9)
    model = streamssm.load(toy.write(tmp_path, input=spec))  # the graph fails on 7 and 8
    with model.pool(2, 2) as pool:
        pool.open("good")
        pool.open("bad")
        pool.push("good", np.array([1, 2, 3]))
        pool.push("bad", np.array([1, 7]))
        before = pool.snapshot("good"), pool.snapshot("bad")
        with pytest.raises(BackendError):
            pool.step()
        assert (pool.snapshot("good"), pool.snapshot("bad")) == before
        pool.close("bad")
        assert [key for key, _ in pool.step()] == ["good"]


def test_waiting_gathers_what_comes_together(opened, rng):
    toy, model = opened("ema")
    x = toy.random(2, rng)
    with model.pool(2, 2, gather=0.2) as pool:
        pool.open("a")
        assert not pool.wait(timeout=0.01)
        pool.push("a", x)
        began = time.monotonic()
        assert pool.wait()  # all there are
        assert time.monotonic() - began < 0.1
        pool.step()
        pool.open("b")
        pool.push("a", x)
        began = time.monotonic()
        assert pool.wait()  # b does not come
        assert time.monotonic() - began > 0.15
        timer = threading.Timer(0.05, pool.push, ("b", x))
        pool.step()
        pool.push("a", x)
        timer.start()
        began = time.monotonic()
        assert pool.wait()
        assert time.monotonic() - began < 0.18
        assert len(pool.step()) == 2
        pool.pause("b")
        pool.push("a", x)
        began = time.monotonic()
        assert pool.wait()  # who is paused is not waited for
        assert time.monotonic() - began < 0.1


def feed(pool, key, x):
    for chunk in np.array_split(x, 57):
        while pool.pending(key) + len(chunk) > 64 * pool.block:
            time.sleep(0.001)
        pool.push(key, chunk)
    pool.flush(key)


def test_threads_push_while_another_steps(opened, rng):
    toy, model = opened("ema")
    inputs = {key: toy.random(400, rng) for key in range(6)}
    results = {key: [] for key in inputs}
    with model.pool(6, 4, gather=0.001) as pool:
        for key in inputs:
            pool.open(key)
        threads = [threading.Thread(target=feed, args=(pool, key, x)) for key, x in inputs.items()]
        for thread in threads:
            thread.start()
        while len(pool):
            pool.wait(timeout=1)
            for key, y in pool.step():
                results[key].append(y)
        for thread in threads:
            thread.join()
    for key, x in inputs.items():
        assert same_bytes(joined(toy, results[key]), named(toy, model.scan(x, 4)))
