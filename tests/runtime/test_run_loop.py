"""The loop itself: what a snapshot may see, and where a run goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from streamssm.errors import InputError, OutputError
from streamssm.report import RunReport
from streamssm.rows import ItemRows
from streamssm.running import Loop
from streamssm.running.loop import Place
from streamssm.running.place import go_to
from streamssm.sources.base import Source


class Records(Source):
    """Three records of 5, 0 and 7 items."""

    def __init__(self, lengths: Sequence[int] = (5, 0, 7)):
        self.name = "records"
        self._lengths, self._at, self._next = list(lengths), 0, 0

    def read(self, count: int) -> np.ndarray:
        if self._at == len(self._lengths):
            self.record, self.more = None, False
            return np.zeros((0, 2), np.float32)
        self.record = f"r{self._at}"
        left = self._lengths[self._at] - self._next
        items = np.arange(self._next, self._next + min(count, left), dtype=np.float32)
        self._next += len(items)
        if not len(items):
            self._at, self._next = self._at + 1, 0
            self.more = True  # as of a pipe: what follows is not known
        return np.stack([items, items + self._at], axis=1)


def rows_of(model, source: Source, chunk: int, place: Place | None = None) -> list[dict]:
    stream, found = model.stream(), []
    loop = Loop(
        stream, ItemRows(model.manifest), source, found.extend, RunReport(model.manifest, 4), chunk=chunk
    )
    if place is not None:
        go_to(source, place)
        loop.place = place
    while loop.advance():
        pass
    loop.finish()
    return found


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_records_of_a_pipe_end_one_by_one(opened, chunk):
    _, model = opened("ema")
    found = rows_of(model, Records(), chunk)
    assert [row["record"] for row in found] == ["r0"] * 5 + ["r2"] * 7
    for number, length in ((0, 5), (2, 7)):
        alone = Records((0,) * number + (length,))
        mine = [row for row in found if row["record"] == f"r{number}"]
        assert rows_of(model, alone, 3) == mine
        x = np.stack([np.arange(length), np.arange(length) + number], axis=1).astype(np.float32)
        np.testing.assert_array_equal(np.array([row["y"] for row in mine], np.float32), model.scan(x))


def test_a_run_goes_on_after_records(opened):
    _, model = opened("ema")
    whole = rows_of(model, Records(), 1)
    assert rows_of(model, Records(), 1, Place(2, "r1")) == whole[5:]
    assert rows_of(model, Records(), 1, Place(1, "r0")) == whole[5:]


class Pieces(Source):
    """One good piece, then one that does not fit."""

    def __init__(self, bad: np.ndarray):
        self.name, self._pieces = "pieces", [np.zeros((8, 2), np.float32), bad]

    def read(self, count: int) -> np.ndarray:
        return self._pieces.pop(0)


def test_nothing_is_saved_of_a_step_that_failed(opened):
    _, model = opened("ema")

    def full(rows: Sequence[dict]) -> None:
        raise OutputError("the disk is full")

    report = RunReport(model.manifest, 4)
    loop = Loop(model.stream(), ItemRows(model.manifest), Records(), full, report, chunk=4)
    with pytest.raises(OutputError):
        loop.advance()
    assert not loop.whole
    bad = np.full((4, 2), np.nan, np.float32)
    found: list[dict] = []
    loop = Loop(model.stream(), ItemRows(model.manifest), Pieces(bad), found.extend, report, chunk=4)
    assert loop.advance()
    assert loop.whole
    with pytest.raises(InputError, match="pieces, chunk at item 8"):
        loop.advance()
    assert not loop.whole
    assert loop.stream.position == 8
    assert not loop.lock.locked()
