"""The asyncio form: the same bytes, backpressure, and failures that stay where they belong."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from serve_tools import run
from toy_models import TOYS

from streamssm.errors import (
    BackendError,
    InputError,
    PoolFullError,
    QueueFullError,
    SnapshotError,
    StreamEndedError,
    UsageError,
)


async def collect(stream) -> list[np.ndarray]:
    return [result async for result in stream]


async def forever(push, x) -> None:
    while True:
        await push(x)
        await asyncio.sleep(0)


def same(parts, wanted) -> bool:
    return np.concatenate([wanted[:0], *parts]).tobytes() == wanted.tobytes()


def test_streams_give_what_streams_of_a_pool_give(models, rng):
    async def one(pool, key, x, cuts):
        stream = await pool.open(key)
        reading = asyncio.ensure_future(collect(stream))
        for chunk in np.split(x, cuts):
            await stream.push(chunk)
        await stream.flush()
        return await reading

    async def scenario():
        inputs = [rng.standard_normal((n, 2)).astype(np.float32) for n in (0, 3, 40, 400, 1000)]
        async with models["ema"].async_pool(5, 4, gather=0.001, limit=32) as pool:
            cuts = [np.sort(rng.integers(0, len(x) + 1, 9)) for x in inputs]
            found = await asyncio.gather(
                *(one(pool, *each) for each in zip(range(5), inputs, cuts, strict=True))
            )
            assert len(pool) == 5
        for parts, x in zip(found, inputs, strict=True):
            assert same(parts, models["ema"].scan(x, 4))

    run(scenario)


def test_one_stream_reads_between_pushes(models, rng):
    async def scenario():
        x = rng.standard_normal((30, 2)).astype(np.float32)
        async with models["ema"].async_stream(block=5) as stream:
            parts = []
            for chunk in np.split(x, (7, 20)):
                await stream.push(chunk)
                while stream.read + 5 <= stream.position:
                    parts.append(await anext(stream))
            saved = await stream.snapshot({"mine": "text"})
            await stream.flush()
            parts += await collect(stream)
        assert same(parts, models["ema"].scan(x, 5))
        assert models["ema"].resume(saved).extra == {"mine": "text"}
        async with models["ema"].async_stream(block=5, snapshot=saved) as stream:
            assert (stream.position, stream.done) == (30, 30)

    run(scenario)


def test_who_reads_and_pushes_is_told_instead_of_waiting_for_ever(models):
    async def scenario():
        async with models["ema"].async_stream(block=4) as stream:
            x = np.zeros((4, 2), np.float32)
            with pytest.raises(QueueFullError, match="are unread"):
                await forever(stream.push, x)
            while stream.unread:
                await anext(stream)
            await stream.push(x)

    run(scenario)


def test_what_is_pushed_waits_for_a_reader(models):
    async def scenario():
        async with models["ema"].async_stream(block=4) as stream:
            reader = asyncio.ensure_future(anext(stream))
            x = np.zeros((4000, 2), np.float32)
            pushing = asyncio.ensure_future(stream.push(x))
            await reader
            await asyncio.sleep(0.2)
            assert not pushing.done()
            assert stream.position - stream.read < 1000

            async def drain():
                while stream.read < len(x):
                    await anext(stream)

            await asyncio.ensure_future(drain())
            await pushing

    run(scenario)


def test_a_large_chunk_is_refused_whole(models):
    async def scenario():
        x = np.zeros((1000, 2), np.float32)
        x[-1] = np.nan
        async with models["ema"].async_stream(block=4) as stream:
            for bad in (x, x.astype(np.float64), [[1]], None):
                with pytest.raises(InputError):
                    await stream.push(bad)
            assert stream.position == 0
            await stream.push(x[:0])

    run(scenario)


def test_slots_are_counted_and_freed(models):
    async def scenario():
        async with models["ema"].async_pool(2) as pool:
            a, _ = await pool.open("a"), await pool.open("b")
            with pytest.raises(PoolFullError, match="2 slots"):
                await pool.open("c")
            with pytest.raises(UsageError, match="already a stream 'a'"):
                await pool.open("a")
            await a.flush()
            assert pool.free == 0  # a may be reset
            with pytest.raises(StreamEndedError, match="reset it"):
                await a.push(np.zeros((1, 2), np.float32))
            await a.reset()
            await a.push(np.zeros((1, 2), np.float32))
            await a.close()
            await a.close()
            with pytest.raises(StreamEndedError, match="closed"):
                await a.reset()
            assert await collect(a) == []
            with pytest.raises(SnapshotError):
                await pool.open("c", b"no snapshot")
            await pool.open("c")
        with pytest.raises(UsageError, match="not open"):
            await pool.open("d")

    run(scenario)


def test_an_opening_that_is_cancelled_leaves_no_slot_taken(models):
    async def scenario():
        async with models["ema"].async_pool(1) as pool:
            for _ in range(20):
                opening = asyncio.ensure_future(pool.open("a"))
                await asyncio.sleep(0)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
            await pool.open("a")

    run(scenario)


def test_failures_stay_where_they_belong(models, rng):
    """Several streams fail at the same step; the others come to their end, and each may start anew."""

    async def scenario():
        inputs = [rng.integers(0, 5, 40) for _ in range(6)]
        async with models["fragile"].async_pool(8, 2, gather=0.01) as pool:
            streams = [await pool.open(key) for key in range(8)]
            reading = [asyncio.ensure_future(collect(stream)) for stream in streams]
            for at in range(0, 40, 4):
                for stream, x in zip(streams, inputs, strict=False):
                    await stream.push(x[at : at + 4])
                if at == 20:
                    await streams[6].push(np.array([1, 7]))
                    await streams[7].push(np.array([8, 8, 1, 1]))
            for stream in streams[:6]:
                await stream.flush()
            for parts, x in zip(reading, inputs, strict=False):
                assert same(await parts, models["fragile"].scan(x, 2))
            for stream, parts in zip(streams[6:], reading[6:], strict=True):
                with pytest.raises(BackendError, match="failed to run"):
                    await parts
                with pytest.raises(BackendError):
                    await stream.push(np.array([1]))
                with pytest.raises(BackendError):
                    await stream.flush()
                await stream.reset()
                await stream.push(np.array([1, 2]))
                assert len(await anext(stream)) == 2

    run(scenario)


def test_a_failure_in_the_last_items_stays_there_too(models):
    async def scenario():
        async with models["fragile"].async_pool(2, 4) as pool:
            good, bad = await pool.open("good"), await pool.open("bad")
            await good.push(np.array([1, 2, 3]))
            await bad.push(np.array([1, 7, 3]))
            found = await asyncio.gather(good.flush(), bad.flush(), return_exceptions=True)
            assert found[0] is None
            assert isinstance(found[1], BackendError)
            assert same(await collect(good), models["fragile"].scan(np.array([1, 2, 3]), 4))

    run(scenario)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_held_streams_and_snapshots_agree(tmp_path, rng, name):
    import streamssm
    from streamssm.outputs import joined

    async def scenario():
        toy = TOYS[name]()
        model = streamssm.load(toy.write(tmp_path))
        block = model.manifest.input.hop * 2
        x = toy.random(block * 9 + 1, rng)
        async with model.async_pool(2, block) as pool:
            stream = await pool.open("a")
            results = []

            async def read():
                async for result in stream:
                    results.append(result)  # noqa: PERF401 (it is looked at meanwhile)

            reading = asyncio.ensure_future(read())
            await stream.push(x[: block * 5])
            async with stream.held():
                await stream.caught_up()
                saved, count = await stream.snapshot(), len(results)
                await stream.push(x[block * 5 :])
                await asyncio.sleep(0.02)
                assert len(results) == count
            await stream.flush()
            await reading
            twin = await pool.open("b", saved)
            reading, again = asyncio.ensure_future(collect(twin)), results[:count]
            await twin.push(x[block * 5 :])
            await twin.flush()
            again += await reading
        whole, found = joined(model.manifest, results), joined(model.manifest, again)
        for key, y in whole.items():
            assert y.tobytes() == found[key].tobytes()

    run(scenario)


def test_who_is_behind_is_not_kept_waiting(models):
    """A recording is sent faster than real time while others are open and silent."""

    async def scenario():
        async with models["ema"].async_pool(2, 4, gather=0.3) as pool:
            stream, _ = await pool.open("recording"), await pool.open("silent")
            reading = asyncio.ensure_future(collect(stream))
            began = asyncio.get_running_loop().time()
            await stream.push(np.zeros((400, 2), np.float32))
            await stream.flush()
            await reading
            assert asyncio.get_running_loop().time() - began < 5  # 100 blocks

    run(scenario)
