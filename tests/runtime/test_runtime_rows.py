"""A pool fed and read by arrays: the same bytes as stream by stream, whoever comes and goes."""

from __future__ import annotations

import numpy as np
import pytest
from toy_models import TOYS, joined, named, same_bytes

from streamssm.errors import BackendError, UsageError

NAMES = [("ema", 2), ("frames", 12), ("ahead", 3), ("tokens", 5), ("pair", 4), ("twice", 7)]


def take(toy, pool, found, copy=True):
    """Step once by rows, and give each stream its own."""
    for rows in pool.step_rows(copy):
        for at, key in enumerate(rows.keys):
            outputs = named(toy, rows.outputs)
            found.setdefault(key, []).append({name: y[at].copy() for name, y in outputs.items()})


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize(("name", "block"), NAMES)
def test_rows_are_the_results_of_the_streams(opened, rng, name, block, copy):
    """In step, then out of step, then to the end: what each stream gets is what it gets alone."""
    toy, model = opened(name)
    hop, count = model.manifest.input.hop, 40
    x = toy.random(6 * block, rng, count)
    found = {}
    with model.pool(count, block) as pool:
        keys = tuple(f"s{k}" for k in range(count))
        for key in keys:
            pool.open(key)
        for at in range(0, 3 * block, block):
            pool.push_rows(keys, x[:, at : at + block])
            take(toy, pool, found, copy)
        late = 2 * hop if block > 2 * hop else hop
        pool.push_rows(keys[::2], x[::2, 3 * block : 3 * block + late])
        pool.push_rows(keys[1::2], x[1::2, 3 * block : 4 * block])
        take(toy, pool, found, copy)
        pool.push_rows(keys[::2], x[::2, 3 * block + late :])
        pool.push_rows(keys[1::2], x[1::2, 4 * block :])
        while pool.ready():
            take(toy, pool, found, copy)
        for key in keys:
            pool.flush(key)
        while len(pool):
            take(toy, pool, found, copy)
    with model.pool(count, block) as pool:
        for row in (0, 1, count - 1):
            pool.open(row)
            pool.push(row, x[row])
            pool.flush(row)
            parts = []
            while row in pool:
                parts += [y for key, y in pool.step() if key == row]
            assert same_bytes(joined(toy, found[f"s{row}"]), joined(toy, parts))


def test_the_keys_are_looked_up_once(opened, rng):
    toy, model = opened("ema")
    with model.pool(5, 2) as pool:
        keys = ("a", "b", ("c", 1))
        for key in keys:
            pool.open(key)
        x = toy.random(2, rng, 3)
        pool.push_rows(keys, x)
        (first,) = pool.step_rows()
        assert first.keys == keys
        pool.push_rows(first.keys, x)
        (second,) = pool.step_rows()
        assert second.keys is first.keys
        pool.close("b")
        with pytest.raises(UsageError, match="'b'"):
            pool.push_rows(keys, x)
        with pytest.raises(UsageError, match="'b'"):
            pool.push_rows(first.keys, x)
        pool.open("d")
        pool.open("b")  # in another slot than before
        pool.push_rows(keys, x)
        (third,) = pool.step_rows()
        assert sorted(map(str, third.keys)) == sorted(map(str, keys))
        by_key = dict(zip(third.keys, third.outputs, strict=True))
        for row, key in enumerate(keys):
            alone = model.stream(2)
            if key != "b":
                alone.push(x[row]), alone.push(x[row])
            np.testing.assert_allclose(by_key[key], alone.push(x[row]), rtol=1e-6)


def test_rows_in_any_order_and_out_of_step(opened, rng):
    toy, model = opened("ema")
    with model.pool(6, 4) as pool, model.pool(6, 4) as other:
        for key in range(6):
            pool.open(key), other.open(key)
        for _ in range(30):
            some = rng.permutation(6)[: rng.integers(1, 7)].tolist()
            x = toy.random(int(rng.integers(1, 7)), rng, len(some))
            pool.push_rows(some, x)
            for key, chunk in zip(some, x, strict=True):
                other.push(key, chunk)
            found = {key: y.tobytes() for rows in pool.step_rows() for key, y in zip(*rows, strict=True)}
            assert found == {key: y.tobytes() for key, y in other.step()}
            assert [pool.pending(key) for key in range(6)] == [other.pending(key) for key in range(6)]
            assert [pool.snapshot(key) for key in range(6)] == [other.snapshot(key) for key in range(6)]


def test_results_stay_what_they_are(opened, rng):
    """Later steps do not write into what was returned, and no row of it is another's."""
    toy, model = opened("ema")
    with model.pool(3, 2) as pool:
        for key in range(3):
            pool.open(key)
        x = toy.random(4, rng, 3)
        pool.push_rows(range(3), x[:, :2])
        (rows,) = pool.step_rows()
        pool.push_rows(range(3), x[:, :2])
        single = pool.step()
        before = rows.outputs.copy(), [y.copy() for _, y in single]
        pool.push_rows(range(3), x[:, 2:])
        pool.step_rows()
        assert rows.outputs.tobytes() == before[0].tobytes()
        for (_, y), kept in zip(single, before[1], strict=True):
            assert y.tobytes() == kept.tobytes()
            y[...] = 0
        assert all(not y.any() for _, y in single)


def test_a_failure_loses_nothing(tmp_path):
    import streamssm

    toy = TOYS["tokens"]()
    spec = toy.manifest.input.__class__("ids", "tokens", "int64", (), vocabulary=9)
    model = streamssm.load(toy.write(tmp_path, input=spec))  # the graph fails on 7 and 8
    with model.pool(2, 2) as pool:
        pool.open("good"), pool.open("bad")
        pool.push_rows(("good", "bad"), np.array([[1, 2], [1, 7]]))
        before = pool.snapshot("good"), pool.snapshot("bad")
        with pytest.raises(BackendError):
            pool.step_rows()
        assert (pool.snapshot("good"), pool.snapshot("bad")) == before
        pool.close("bad")
        (rows,) = pool.step_rows()
        assert rows.keys == ("good",)
        assert pool.step_rows() == []
