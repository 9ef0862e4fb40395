"""Pools under schedules made at random: each stream's results are, to the byte, those of a single stream."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import joined, named

from streamssm.errors import InputError, QueueFullError, StreamEndedError, UsageError

KEYS, SLOTS, LIMIT = 9, 7, 6  # keys, slots on lanes of 3, blocks that may wait
CASES = [("ema", 3), ("frames", 12), ("ahead", 3), ("tokens", 5), ("pair", 4), ("twice", 7)]
WHAT = ["push", "push", "push", "rows", "again", "step", "step rows", "look", "nothing", "bad", "rows"]
WHAT += ["open", "close", "reset", "pause", "resume", "flush", "clone", "move"]
SCHEDULES = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, KEYS - 1), st.integers(0, 15)), min_size=10, max_size=60
)


class Schedule:
    """A pool and, for each of its streams, a single one that is given the same.

    What the pool has returned is kept as it came, to be compared at the end: nothing may write to it.
    """

    def __init__(self, toy, model, block, pool, seed):
        self.toy, self.model, self.block, self.pool = toy, model, block, pool
        self.rng = np.random.default_rng(seed)
        self.alone, self.wanted, self.found, self.over = {}, {}, {}, []
        self.ending, self.together = set(), ()

    def do(self, what, key, n):
        if what in ("step", "step rows", "look"):
            self.step(what)
        elif what in ("rows", "again"):
            self.push_rows(n, self.together if what == "again" else None)
        elif key not in self.alone:
            self.open(key)
        elif what in ("pause", "resume"):
            getattr(self.pool, what)(key)
        elif key in self.ending:
            with pytest.raises(StreamEndedError):
                self.pool.push(key, self.toy.random(n, self.rng))
        elif what != "open":
            getattr(self, what)(key, n)

    def open(self, key, snapshot=None):
        if len(self.pool) == SLOTS:
            return
        self.pool.open(key, snapshot)
        if snapshot is None:
            self.alone[key] = self.model.stream(self.block)
        else:
            self.alone[key] = self.model.resume(snapshot, block=self.block)
        self.found[key], self.wanted[key] = [], [self.alone[key].push(self.toy.random(0, self.rng))]

    def push(self, key, n):
        self.give([key], self.toy.random(n, self.rng, 1), lambda x: self.pool.push(key, x[0]))

    def nothing(self, key, _):
        self.push(key, 0)

    def push_rows(self, n, keys):
        if keys is None:
            keys = [key for key in self.alone if key not in self.ending and self.rng.random() < 0.7]
            self.rng.shuffle(keys)
        chunks = self.toy.random(n, self.rng, len(keys))
        if not self.alone.keys() >= set(keys):  # as a step has given them, but some have gone since
            with pytest.raises(UsageError, match="no stream"):
                self.pool.push_rows(keys, chunks)
        elif self.ending.intersection(keys):
            with pytest.raises(StreamEndedError):
                self.pool.push_rows(keys, chunks)
        else:
            self.give(keys, chunks, lambda x: self.pool.push_rows(keys, x))

    def give(self, keys, chunks, push):
        before = [self.pool.pending(key) for key in keys]
        try:
            mine = chunks.copy()
            push(mine)
            mine[...] = 0  # the pool has its own
        except QueueFullError:
            assert max(before) + chunks.shape[1] > LIMIT * self.block
            assert [self.pool.pending(key) for key in keys] == before
            return
        for key, chunk in zip(keys, chunks, strict=True):
            self.wanted[key].append(self.alone[key].push(chunk))

    def bad(self, key, n):
        before = self.pool.snapshot(key)
        chunk = self.toy.random(n + 1, self.rng).astype(np.float64)
        chunk[-1] = np.nan
        with pytest.raises(InputError):
            self.pool.push(key, chunk)
        with pytest.raises(InputError):
            self.pool.push_rows((key,), chunk[None])
        assert self.pool.snapshot(key) == before

    def flush(self, key, _):
        self.pool.flush(key)
        self.wanted[key].append(self.alone[key].flush())
        self.ending.add(key)

    def close(self, key, _):
        self.pool.close(key)
        self.end(key, early=True)

    def reset(self, key, _):
        self.pool.reset(key)
        self.end(key, early=True)
        self.alone[key] = self.model.stream(self.block)
        self.found[key], self.wanted[key] = [], [self.alone[key].push(self.toy.random(0, self.rng))]

    def clone(self, key, n):
        """Another key goes on from here, with what waits."""
        if n % KEYS not in self.alone:
            self.open(n % KEYS, self.pool.snapshot(key))

    def move(self, key, _):
        """Out of the pool and in again, with what waits."""
        snapshot = self.pool.snapshot(key)
        self.pool.close(key)
        self.pool.open(key, snapshot)

    def step(self, what):
        if what == "step":
            for key, y in self.pool.step():
                self.found[key].append(y)
        else:
            self.step_rows(copy=what == "step rows")
        for key in [key for key in self.ending if key not in self.pool]:
            self.ending.discard(key)
            self.end(key)

    def step_rows(self, copy):
        for keys, outputs in self.pool.step_rows(copy):
            self.together = keys
            for at, key in enumerate(keys):
                part = {name: y[at] if copy else y[at].copy() for name, y in named(self.toy, outputs).items()}
                self.found[key].append(part)

    def end(self, key, early=False):
        del self.alone[key]
        self.over.append((self.found.pop(key), self.wanted.pop(key), early))

    def check(self):
        """To the last item, and then everything there was."""
        for key in self.pool:
            self.pool.resume(key)
            if key not in self.ending:
                self.flush(key, 0)
        while self.alone:
            assert self.pool.ready()
            self.step("step")
        for found, wanted, early in self.over:
            have, want = joined(self.toy, found) if found else {}, joined(self.toy, wanted)
            assert early or have.keys() == want.keys()
            for name, y in have.items():
                assert early or len(y) == len(want[name])
                assert y.tobytes() == want[name][: len(y)].tobytes()
        assert self.pool.ready() == 0
        assert not self.pool._table.more


@pytest.mark.parametrize(("name", "block"), CASES)
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(operations=SCHEDULES, seed=st.integers(0, 99))
def test_any_schedule_gives_the_bytes_of_single_streams(opened, name, block, operations, seed):
    """Streams of different phases come, go, come again under the same key, wait, are moved and cloned with
    what waits in them; keys of one step are pushed to again after the next."""
    toy, model = opened(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamssm.backends.cpu.ROWS", 3)
        pool = model.pool(SLOTS, block, limit=LIMIT * block)
    with pool:
        schedule = Schedule(toy, model, block, pool, seed)
        for operation in operations:
            schedule.do(*operation)
        schedule.check()


def test_keys_of_streams_that_have_ended_are_refused(opened, rng):
    """Also those that a step has just returned, which it knows the rows of."""
    toy, model = opened("ema")
    with model.pool(4, 4) as pool:
        for key in "ab":
            pool.open(key)
            pool.push(key, toy.random(2, rng))
            pool.flush(key)
        (rows,) = pool.step_rows()
        assert rows.keys == ("a", "b")
        assert len(pool) == 0
        with pytest.raises(UsageError, match="no stream 'a'"):
            pool.push_rows(rows.keys, toy.random(4, rng, 2))
        assert pool.ready() == 0
        pool.open("b"), pool.open("a")  # in each other's slots
        x = toy.random(4, rng, 2)
        pool.push_rows(rows.keys, x)
        found = dict(pool.step())
        for key, chunk in zip("ab", x, strict=True):
            assert found[key].tobytes() == model.stream(4).push(chunk).tobytes()


def test_streams_that_come_and_go_beside_step_rows_get_their_own(opened, rng):
    """What a step notes about its keys is not out of date when another thread changes them."""
    toy, model = opened("ema")
    with model.pool(2, 2) as pool:
        pool.open("a"), pool.open("b")
        joining = pool._step.run

        def change():
            pool.close("a")
            pool.open("c")

        other = threading.Thread(target=change)

        def run(take):
            joining(take)
            other.start()
            other.join(0.05)  # it waits for the step to be over, keys and all

        pool._step.run = run
        pool.push_rows(("a", "b"), toy.random(2, rng, 2))
        (rows,) = pool.step_rows()
        other.join()
        assert rows.keys == ("a", "b")
        with pytest.raises(UsageError, match="no stream 'a'"):
            pool.push_rows(rows.keys, toy.random(2, rng, 2))
        assert pool.pending("c") == 0


def test_an_interrupt_loses_no_results_silently(opened, rng, monkeypatch):
    """Of streams whose call of the step was over, too: they say so, and do not go on with a gap."""
    from streamssm.errors import StreamTornError

    toy, model = opened("ema")
    monkeypatch.setattr("streamssm.backends.cpu.ROWS", 2)
    with model.pool(6, 2) as pool:
        for key in range(6):
            pool.open(key)
            pool.push(key, toy.random(2, rng))
        calls, step = [], type(pool._states._lanes[0]).step

        def interrupted(lane):
            calls.append(lane)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return step(lane)

        with monkeypatch.context() as patch:
            patch.setattr("streamssm.backends.cpu.CpuLane.step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.step()
        for key in range(4):
            with pytest.raises(StreamTornError, match=f"stream {key}"):
                pool.snapshot(key)
            pool.reset(key)
        assert [key for key, _ in pool.step()] == [4, 5]  # had not begun


def test_small_chunks_and_empty_ones_do_not_pile_up(opened, rng):
    """A stream that is paused and fed item by item holds items, not thousands of arrays."""
    toy, model = opened("ema")
    with model.pool(1, 8, limit=4096) as pool:
        pool.open("a")
        pool.pause("a")
        x = toy.random(4000, rng)
        for item in x:
            pool.push("a", item[None])
            pool.push("a", x[:0])
        assert len(pool._table.more[0]) <= 2 * 4000 // 8
        pool.resume("a")
        found = []
        while pool.ready():
            found += [y for _, y in pool.step()]
        assert np.concatenate(found).tobytes() == model.stream(8).push(x).tobytes()


def test_a_closed_slot_holds_no_chunks(opened, rng):
    toy, model = opened("ema")
    x = toy.random(1 << 18, rng)
    with model.pool(4, 8, limit=1 << 20) as pool:
        tracemalloc.start()
        for key in range(4):
            pool.open(key)
            pool.push(key, x)
        assert tracemalloc.get_traced_memory()[0] > 4 * x.nbytes
        pool.close(0), pool.reset(1), pool.open(0)
        pool.flush(2), pool.close(2), pool.close(3)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 1 << 16


@pytest.mark.parametrize("name", ["ema", "tokens"])
def test_a_state_that_cannot_be_written_opens_no_stream(opened, rng, name):
    """And a stream that could not be reset is what it was."""
    toy, model = opened(name)
    with model.pool(2, 2) as pool:
        pool.open("a")
        pool.push("a", toy.random(3, rng))
        before = pool.snapshot("a")

        def write(slot, states=None):
            raise MemoryError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool._states, "write", write)
            for change in (lambda: pool.open("b"), lambda: pool.reset("a")):
                with pytest.raises(MemoryError):
                    change()
        assert list(pool) == ["a"]
        assert pool.snapshot("a") == before
        pool.open("b")
        assert [key for key, _ in pool.step()] == ["a"]


def test_results_may_be_pushed_to_while_they_are_read(opened, rng):
    """Keys closed, opened and pushed to in the loop over a step's results."""
    toy, model = opened("ema")
    with model.pool(4, 2) as pool:
        for key in range(4):
            pool.open(key)
            pool.push(key, toy.random(2, rng))
        for key, _ in pool.step():
            pool.close(key)
            pool.open(key)
            pool.push(key, np.full((2, 2), key, np.float32))
        for key, y in pool.step():
            pool.push(key, y)
            assert y.tobytes() == model.stream(2).push(np.full((2, 2), key, np.float32)).tobytes()
        assert pool.ready() == 4
