"""A pool of more streams than one call runs, and what fails or is cut short in the middle."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from toy_models import TOYS, joined, same_bytes

import streamssm
from streamssm.backends.slots import ROWS
from streamssm.errors import (
    BackendError,
    InputError,
    QueueFullError,
    StreamEndedError,
    StreamTornError,
    UsageError,
)


def drain(pool, found):
    """Step until every stream is closed; the results are appended to ``found``."""
    while len(pool):
        for key, y in pool.step():
            found[key].append(y)
    return found


@pytest.mark.parametrize("name", ["ema", "ahead", "twice"])
def test_whole_lanes_and_parts_of_them_give_the_same_bytes(opened, rng, name):
    """More streams than a call runs: those on a lane whose every stream is ready are run where they
    lie, others are copied together."""
    toy, model = opened(name)
    block, count = 4, 2 * ROWS + 5
    x = toy.random(6 * block + 1, rng, count)
    found = {key: [] for key in range(count)}
    with model.pool(count, block) as pool:
        for key in found:
            pool.open(key)
        for turn in range(12):
            for key in found:
                if turn > 8 or (turn + key // ROWS) % 3 == 0 or rng.random() < 0.3:
                    pool.push(key, x[key, pool.position(key) :][:block])
            for key, y in pool.step():
                found[key].append(y)
        for key in found:
            pool.push(key, x[key, pool.position(key) :])
            pool.flush(key)
        drain(pool, found)
    for key in (0, ROWS, count - 1):
        with model.pool(count, block) as pool:
            pool.open(key)
            pool.push(key, x[key])
            pool.flush(key)
            assert same_bytes(joined(toy, found[key]), joined(toy, drain(pool, {key: []})[key]))


def test_a_lane_of_the_kernels_gives_what_a_stream_alone_does(rng):
    """The built-in model, on whatever runs it here."""
    model = streamssm.load("vad")
    x = rng.standard_normal((ROWS + 3, 1280)).astype(np.float32) * np.float32(0.1)
    together, alone = [], []
    with model.pool(len(x), 640) as pool:
        for key in range(len(x)):
            pool.open(key)
        for at in range(0, 1280, 160):
            pool.push_rows(range(len(x)), x[:, at : at + 160])
            together += [y for key, y in pool.step() if key == 5]
    with model.pool(len(x), 640) as pool:
        pool.open("alone")
        for at in range(0, 1280, 640):
            pool.push("alone", x[5, at : at + 640])
            alone += [y for _, y in pool.step()]
    assert len(together) == len(alone) == 2
    assert np.concatenate(together).tobytes() == np.concatenate(alone).tobytes()


def test_streams_that_are_ready_together_come_to_lie_together(opened, rng):
    """So that a paced pool copies next to nothing; and each stream has its own state still."""
    toy, model = opened("ema")
    count, turns = 4 * ROWS, 6
    x = toy.random(2 * turns, rng, count)
    group = rng.permutation(np.arange(count) % 2)
    found = {key: [] for key in range(count)}
    copied = []
    with model.pool(count, 2) as pool:
        for key in found:
            pool.open(key)
        run_copies = pool._states._run_copies
        pool._states._run_copies = lambda slots: copied.append(len(slots)) or run_copies(slots)
        for turn in range(turns):
            for half in range(2):
                copied.clear()
                for key in np.flatnonzero(group == half):
                    pool.push(int(key), x[key, 2 * turn : 2 * turn + 2])
                for key, y in pool.step():
                    found[key].append(y)
                assert sum(copied) < ROWS
        assert not copied
    for key in (0, 1, ROWS + 1, count - 1):
        assert np.concatenate(found[key]).tobytes() == model.scan(x[key], block=2).tobytes()


@pytest.mark.parametrize("when", range(4))
def test_an_interrupt_does_not_mix_streams_up(opened, rng, when):
    """In the middle of an exchange of rows."""
    toy, model = opened("ema")
    count = 2 * ROWS
    with model.pool(count, 2) as pool:
        for key in range(count):
            pool.open(key)
            pool.push(key, toy.random(2, rng))
        pool.step()
        before = {key: pool._states.read(pool._slots[key].row)[0].tobytes() for key in range(count)}
        for key in range(0, count, 2):
            pool.push(key, toy.random(2, rng))
        lanes, calls = pool._states._lanes, []

        class Torn(list):
            """States; getting at them is interrupted once."""

            def __iter__(self):
                calls.append(0)
                if len(calls) == when + 1:
                    raise KeyboardInterrupt
                return super().__iter__()

        for lane in lanes:
            lane.__class__ = type(
                "Lane",
                (lane.__class__,),
                {"state": property(lambda self, own=lane.__class__: Torn(own.state.fget(self)))},
            )
        with pytest.raises(KeyboardInterrupt):
            pool.step()
        for key in range(count):
            assert pool._states.read(pool._slots[key].row)[0].tobytes() == before[key]


class Interrupt:
    """Raises KeyboardInterrupt at the given line that is run in the module of the lanes."""

    def __init__(self, line: int):
        self.left = line

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.endswith("backends/slots.py"):
            return None
        self.left -= event == "line"
        if self.left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self


class History:
    """Streams of a pool and what each was given since its start; those at fault are started anew."""

    def __init__(self, pool, rng):
        self.pool, self.rng, self.given, self.saved = pool, rng, {}, []

    def act(self):
        """Do something to some stream."""
        key = int(self.rng.integers(self.pool.slots))
        name = str(
            self.rng.choice(["push"] * 8 + ["open", "close", "reset", "pause", "resume", "save", "load"])
        )
        if name == "open" and key not in self.given:
            self.pool.open(key)
            self.given[key] = []
        elif name == "load" and key not in self.given and self.saved:
            snapshot, given = self.saved[self.rng.integers(len(self.saved))]
            self.pool.open(key, snapshot)
            self.given[key] = list(given)
        elif name == "save" and self.given.get(key) and 7 not in self.given[key]:
            self.saved.append((self.pool.snapshot(key), list(self.given[key])))
        elif name == "close" and self.given.pop(key, None) is not None:
            self.pool.close(key)
        elif name == "reset" and key in self.given:
            self.start_anew(key)
        elif name in ("pause", "resume") and key in self.given:
            getattr(self.pool, name)(key)
        elif name == "push" and key in self.given:
            items = self.rng.integers(0, 5, self.rng.integers(1, 6))
            items[0] = 7 if self.rng.random() < 0.02 else items[0]
            self.pool.push(key, items)
            self.given[key] += items.tolist()

    def start_anew(self, key):
        self.pool.reset(key)
        self.given[key] = []

    def step(self, line: int | None):
        """Step, interrupted at a line."""
        try:
            sys.settrace(None if line is None else Interrupt(line))
            self.pool.step()
        except (BackendError, StreamTornError, KeyboardInterrupt):
            sys.settrace(None)
            for key in self.given:
                if self.pool._slots[key].torn or 7 in self.given[key]:
                    self.start_anew(key)
        finally:
            sys.settrace(None)


@pytest.mark.parametrize("seed", range(8))
def test_no_history_mixes_streams_up(tmp_path, monkeypatch, seed):
    """Joins, leaves, pauses, snapshots, failures of the model, interrupts at any line: on small lanes, which
    exchange rows at nearly every step, each stream's state is that of its own items."""
    monkeypatch.setattr("streamssm.backends.cpu.ROWS", 4)
    toy, rng = TOYS["tokens"](), np.random.default_rng(seed)
    spec = toy.manifest.input.__class__("ids", "tokens", "int64", (), vocabulary=9)
    model = streamssm.load(toy.write(tmp_path, input=spec))
    with model.pool(16, 2) as pool:
        history = History(pool, rng)
        for turn in range(200):
            for _ in range(rng.integers(1, 12)):
                history.act()
            history.step(int(rng.integers(120)) if turn % 4 == 0 else None)
            for key, given in history.given.items() if turn % 10 == 9 else ():
                if not pool._slots[key].torn and 7 not in given:
                    alone = model.stream(2)
                    alone.push(np.array(given[: len(given) - pool.pending(key)], np.int64))
                    state = pool._states.read(pool._slots[key].row)
                    assert [y.tobytes() for y in state] == [y.tobytes() for y in alone._lane.state]


def test_rows_are_pushed_together_or_not_at_all(opened, rng):
    toy, model = opened("ema")
    x = toy.random(5, rng, 3)
    with model.pool(4, 2, limit=6) as pool, model.pool(4, 2, limit=6) as other:
        for key in "abcd":
            pool.open(key)
            other.open(key)
        pool.push_rows("abc", x)
        for key, chunk in zip("abc", x, strict=True):
            other.push(key, chunk)
        other.push("d", x[0])
        pool.push("d", x[0])
        for _ in range(2):
            for (key, y), (same, z) in zip(sorted(pool.step()), sorted(other.step()), strict=True):
                assert key == same
                assert y.tobytes() == z.tobytes()
        before = [pool.snapshot(key) for key in "abcd"]
        bad = x.copy()
        bad[2, 1] = np.nan
        with pytest.raises(InputError, match="nan"):
            pool.push_rows("abc", bad)
        with pytest.raises(InputError):
            pool.push_rows("ab", x)
        with pytest.raises(UsageError, match="twice"):
            pool.push_rows("aba", x)
        with pytest.raises(UsageError, match="'e'"):
            pool.push_rows("abe", x)
        pool.push("c", x[0])
        before[2] = pool.snapshot("c")
        with pytest.raises(QueueFullError, match="'c' has 6"):
            pool.push_rows("abc", x)
        assert [pool.snapshot(key) for key in "abcd"] == before
        pool.flush("b")
        with pytest.raises(StreamEndedError):
            pool.push_rows("ab", x[:2, :1])


@pytest.mark.parametrize("count", [2, 3])
def test_a_step_cut_short_by_a_signal_is_owned_up_to(opened, rng, monkeypatch, count):
    toy, model = opened("ema")
    with model.pool(3, 2) as pool:
        for key in range(3):
            pool.open(key)
            pool.push(key, toy.random(3 if key < count else 1, rng))

        def interrupted(_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("streamssm.backends.cpu.CpuLane.step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.step()
        for call in (pool.step, lambda: pool.snapshot(0)):
            with pytest.raises(StreamTornError, match="stream 0"):
                call()
        for key in range(count):
            pool.reset(key)
            pool.push(key, toy.random(2, rng))
        assert {key for key, _ in pool.step()} == set(range(count))


def test_a_failed_part_of_a_step_keeps_no_other_waiting(tmp_path):
    toy = TOYS["tokens"]()
    spec = toy.manifest.input.__class__("ids", "tokens", "int64", (), vocabulary=9)
    model = streamssm.load(toy.write(tmp_path, input=spec))
    with model.pool(2 * ROWS, 2) as pool:
        for key in range(2 * ROWS):
            pool.open(key)
            pool.push(key, np.array([1, 7 if key == ROWS else 2]))
        assert {key for key, _ in pool.step()} == set(range(ROWS))
        with pytest.raises(BackendError):
            pool.step()
        pool.close(ROWS)
        assert {key for key, _ in pool.step()} == set(range(ROWS + 1, 2 * ROWS))


def test_a_failed_part_is_found_beside_streams_that_always_have_more(tmp_path):
    """The next step is the failed part's alone: else streams that are behind would hide it for as long as
    they are."""
    toy = TOYS["tokens"]()
    spec = toy.manifest.input.__class__("ids", "tokens", "int64", (), vocabulary=9)
    model = streamssm.load(toy.write(tmp_path, input=spec))
    with model.pool(2 * ROWS, 2) as pool:
        for key in range(2 * ROWS):
            pool.open(key)
            pool.push(key, np.array([1, 7 if key == ROWS else 2] * (6 if key == 0 else 1)))
        pool.step()
        with pytest.raises(BackendError):
            pool.step()
        pool.reset(ROWS)
        assert {key for key, _ in pool.step()} == set(range(ROWS + 1, 2 * ROWS))
        assert {key for key, _ in pool.step()} == {0}


def test_a_torn_part_loses_no_results_of_the_others(opened, rng):
    toy, model = opened("ema")
    with model.pool(2 * ROWS, 2) as pool:
        for key in range(2 * ROWS):
            pool.open(key)
            pool.push(key, toy.random(2, rng))
        pool._slots[ROWS].torn = True
        assert {key for key, _ in pool.step()} == set(range(ROWS))
        with pytest.raises(StreamTornError):
            pool.step()


def test_who_is_behind_is_not_kept_waiting(opened, rng):
    toy, model = opened("ema")
    with model.pool(2, 2, gather=60) as pool:
        pool.open("late")
        pool.open("silent")
        pool.push("late", toy.random(6, rng))
        assert pool.step()
        began = time.monotonic()
        assert pool.wait()  # gathering is for those that keep up
        assert time.monotonic() - began < 30
