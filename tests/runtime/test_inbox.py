"""The queue of a live source: order, every loss counted, every policy, threads, a disk that is full."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamssm import waiting
from streamssm.errors import SourceError, UsageError
from streamssm.live.inbox import Inbox, Piece, joined_gaps
from streamssm.live.queue import Queue
from streamssm.live.spill import SpillFile
from streamssm.sources.base import Gap
from streamssm.waiting import Interrupted, Stop

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 30)),
        st.tuples(st.just("get"), st.integers(1, 40)),
        st.tuples(st.just("lost"), st.integers(1, 5)),
    ),
    max_size=60,
)


def numbers(start: int, count: int) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.int64)[:, None]


class Reader:
    """Checks that what comes is what was put, with an exact gap wherever something is missing."""

    def __init__(self):
        self.next = self.read = self.dropped = self.lost = 0

    def take(self, piece: Piece) -> None:
        for gap in piece.gaps:
            if gap.reason == "dropped":
                self.next += gap.items
                self.dropped += gap.items
            else:
                self.lost += gap.items
        expected = numbers(self.next, len(piece.items))
        np.testing.assert_array_equal(piece.items, expected)
        self.next += len(piece.items)
        self.read += len(piece.items)


def finish(inbox: Inbox, reader: Reader) -> None:
    inbox.end()
    while not (piece := inbox.get(17)).ended:
        reader.take(piece)
    reader.take(piece)
    assert inbox.waiting == 0


@pytest.mark.parametrize("limit", [0, 8 * 13, 1 << 20])
@pytest.mark.parametrize("policy", ["drop-oldest", "spill"])
@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_every_item_comes_once_or_is_counted(policy, limit, actions):
    inbox, reader = Inbox((1,), np.int64, 20, policy, spill_limit=limit), Reader()
    put = lost = 0
    for action, count in actions:
        if action == "put":
            assert inbox.put(numbers(put, count))
            put += count
        elif action == "lost":
            inbox.lost(Gap("device", count))
            lost += count
        else:
            reader.take(inbox.get(count, timeout=0))
        assert inbox.waiting <= 20 + (limit // 8 if policy == "spill" else 0)
    finish(inbox, reader)
    assert reader.next == put == inbox.accepted
    assert (reader.dropped, reader.lost) == (inbox.dropped, lost)
    assert reader.read == put - inbox.dropped
    if policy == "spill" and limit == 1 << 20:
        assert not inbox.dropped
    inbox.close()


@pytest.mark.parametrize("policy", ["block", "drop-oldest", "spill"])
def test_a_thread_puts_and_another_gets(policy):
    rng = np.random.default_rng(0)
    inbox, reader = Inbox((1,), np.int64, 50, policy, spill_limit=1 << 20), Reader()
    sizes = rng.integers(0, 60, 400)

    def receive() -> None:
        at = 0
        for size in sizes:
            inbox.put(numbers(at, size))
            at += size
            if size % 7 == 0:
                inbox.lost(Gap("device", 1))
        inbox.end()

    thread = threading.Thread(target=receive)
    thread.start()
    while not (piece := inbox.get(int(rng.integers(1, 80)))).ended:
        reader.take(piece)
    reader.take(piece)
    thread.join()
    assert reader.next == sizes.sum() == inbox.accepted
    assert reader.lost == (sizes % 7 == 0).sum()
    assert inbox.high_water <= 50 + (1 << 17 if policy == "spill" else 0)
    assert (inbox.dropped == 0) == (policy != "drop-oldest" or reader.dropped == 0)
    inbox.close()


def test_spilled_items_come_back_in_order_and_leave_nothing(tmp_path):
    inbox, reader = Inbox((1,), np.int64, 10, "spill", tmp_path), Reader()
    for start in range(0, 100_000, 50):
        inbox.put(numbers(start, 50))
    assert inbox.waiting == inbox.high_water == 100_000
    deadline = time.monotonic() + 20
    while inbox.spilled < 99_990 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert inbox.spilled == 99_990
    assert list(tmp_path.iterdir()) == []  # it has no name
    finish(inbox, reader)
    assert (reader.read, inbox.dropped) == (100_000, 0)
    inbox.close()
    inbox.close()


def test_a_full_disk_drops_what_is_new_and_keeps_what_is_written(monkeypatch):
    inbox, reader, written = Inbox((1,), np.int64, 10, "spill"), Reader(), SpillFile.write

    def write(self: SpillFile, place: int, data: memoryview) -> None:
        if place >= 400:
            raise OSError(28, "No space left on device")
        written(self, place, data)

    monkeypatch.setattr(SpillFile, "write", write)
    for start in range(0, 100, 10):
        inbox.put(numbers(start, 10))
    deadline = time.monotonic() + 20
    while inbox.failure is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert "No space left" in inbox.failure
    inbox.put(numbers(100, 10))
    assert inbox.dropped == 10
    finish(inbox, reader)
    assert reader.next == 110
    inbox.close()


def test_block_waits_and_is_let_go():
    inbox = Inbox((), np.float32, 4)
    done = []

    def receive() -> None:
        done.append(inbox.put(np.zeros(10)))

    thread = threading.Thread(target=receive)
    thread.start()
    assert len(inbox.get(100).items) == 4
    assert not done
    inbox.close()
    thread.join(10)
    assert done == [False]
    assert not inbox.put(np.zeros(1))


@pytest.mark.parametrize("policy", ["block", "drop-oldest", "spill"])
def test_a_receiver_that_is_to_stop_loses_nothing(policy):
    inbox, reader = Inbox((1,), np.int64, 4, policy, spill_limit=80), Reader()
    inbox.put(numbers(0, 4))
    inbox.release()
    assert inbox.put(numbers(4, 100))
    finish(inbox, reader)
    assert (reader.read, inbox.dropped) == (104, 0)
    inbox.close()


def test_a_callback_never_waits():
    inbox = Inbox((1,), np.int64, 4)
    for start in range(0, 12, 3):
        inbox.put(numbers(start, 3), wait=False)
    piece = inbox.get(9)
    assert piece.gaps == (Gap("dropped", 8),)
    np.testing.assert_array_equal(piece.items, numbers(8, 4))


def test_the_moment_of_the_latest_items_and_gaps_between():
    inbox = Inbox((), np.float32, 100)
    inbox.put(np.zeros(3), at=1.0)
    inbox.put(np.zeros(3), at=2.0)
    inbox.lost(Gap("device", 2))
    inbox.lost(Gap("device", 3, 0.5))
    inbox.lost(Gap("device", 4))
    inbox.put(np.zeros(3), at=3.0)
    assert (inbox.get(2).at, inbox.get(2).at) == (1.0, 2.0)
    first = inbox.get(50)
    assert (len(first.items), first.at, first.gaps) == (2, 2.0, ())
    second = inbox.get(50)
    assert (len(second.items), second.gaps) == (3, (Gap("device", 6), Gap("device", 3, 0.5)))
    assert not inbox.get(1, timeout=0.01).ended


def test_an_error_comes_after_everything_else():
    inbox = Inbox((), np.float32, 100)
    inbox.put(np.zeros(3))
    inbox.lost(Gap("disconnected", None, 1.5))
    inbox.end(SourceError("gone"))
    inbox.put(np.zeros(3))
    assert len(inbox.get(9).items) == 3
    piece = inbox.get(9)
    assert (len(piece.items), piece.gaps) == (0, (Gap("disconnected", None, 1.5),))
    with pytest.raises(SourceError, match="gone"):
        inbox.get(9)


def test_gaps_of_one_reason_are_joined():
    gaps = [Gap("a", 1), Gap("b", None, 2.0), Gap("a", 2), Gap("b", None, 3.0), Gap("b")]
    assert joined_gaps(gaps) == [Gap("a", 3), Gap("b", None, 5.0), Gap("b")]


def test_a_stop_leaves_the_wait_but_not_what_is_there():
    inbox, stop = Inbox((), np.float32, 100), Stop()
    timer = threading.Timer(0.1, stop.request)
    timer.start()
    with stop.leaving(), pytest.raises(Interrupted):
        inbox.get(5)
    inbox.put(np.zeros(3))
    with stop.leaving():
        assert len(inbox.get(5).items) == 3
    timer.join()
    stop.close()


def test_a_stop_leaves_a_pipe_and_a_sleep_from_any_thread():
    read, write = os.pipe()
    stop = Stop()
    with open(read, "rb") as file, stop.leaving():
        os.write(write, b"x")
        waiting.readable(file)  # at once
        assert file.read1(10) == b"x"
        threading.Timer(0.1, stop.request).start()
        with pytest.raises(Interrupted):
            waiting.readable(file)
        with pytest.raises(Interrupted):
            waiting.sleep(60)
    waiting.sleep(0)
    os.close(write)
    stop.close()


def test_how_much_may_wait():
    assert Queue().capacity(None, 16000.0) == 32000
    assert Queue().capacity(48000, 16000.0) == 96000
    assert Queue(items=160).capacity(44100, 16000.0) == 441
    assert Queue().capacity(None, None) == 4096
    assert Queue(items=7).capacity(None, None) == 7
    with pytest.raises(UsageError, match="no clock"):
        Queue(seconds=1).capacity(None, None)
    with pytest.raises(UsageError, match="holds nothing"):
        Inbox((), np.float32, 0)
    with pytest.raises(UsageError, match="no policy"):
        Inbox((), np.float32, 1, "panic")
