"""The thin client against a server in another thread."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from serve_tools import PATIENCE, expected, run, served, voice

import streamssm
from streamssm.client import aconnect
from streamssm.errors import (
    BackendError,
    InputError,
    PoolFullError,
    ServerError,
    SnapshotError,
    StreamEndedError,
    UsageError,
)


class Background:
    """A server in a thread of its own."""

    def __init__(self, models, *names: str, **options):
        self._begun, self._loop = threading.Event(), asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._scenario = self._serve(models, names, options)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._scenario,))

    async def _serve(self, models, names, options):
        async with served(models, *names, **options) as server:
            self.url = f"ws://127.0.0.1:{server.port}"
            self._begun.set()
            await self._end.wait()

    def __enter__(self) -> Background:
        self._thread.start()
        assert self._begun.wait(PATIENCE)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    def drain(self) -> None:
        """End the server."""
        self._loop.call_soon_threadsafe(self._end.set)


@pytest.fixture(scope="module")
def server(models):
    with Background(models, "voice", "ema", "fragile", slots=4) as running:
        yield running


def test_rows_come_with_what_is_sent(server, models):
    x = voice()
    with streamssm.connect(server.url, model="voice") as stream:
        assert stream.ready["rate"] == 8000
        rows = [row for chunk in np.split(x, range(0, len(x), 777)) for row in stream.send(chunk)]
        assert rows + stream.flush() == expected(models["voice"], x)
        stream.reset()
        assert stream.send((x * 0).tolist()) + stream.flush() == []


def test_a_stream_is_carried_over(server, models):
    x = voice()
    with streamssm.connect(server.url.replace("ws", "http"), "voice", emit="items") as stream:
        rows = stream.send(x[:5000])
        saved = stream.snapshot()
        rows += stream.arrived()
    with streamssm.connect(server.url, "voice", emit="items") as stream:
        assert stream.resume(saved) == 5000
        assert rows + stream.send(x[5000:]) + stream.flush() == expected(models["voice"], x, "items")


def test_integers_tokens_and_large_chunks(server, models):
    x = (np.tile(voice(), 15) * 32768).astype("<i2")  # more than a message may hold
    with streamssm.connect(server.url, "voice", encoding="s16le") as stream:
        rows = stream.send(x) + stream.flush()
        assert rows == expected(models["voice"], x.astype(np.float32) / np.float32(32768))
        with pytest.raises(InputError, match="float32, the stream sends int16"):
            stream.send(x.astype(np.float32))
    with streamssm.connect(server.url, "fragile") as stream:
        assert stream.send([1, 2, 3]) + stream.flush() == expected(models["fragile"], np.array([1, 2, 3]))
        many = np.arange(80_000) % 5  # more than a message may hold
        rows = stream.reset() or stream.send(many) + stream.flush()
        assert rows == expected(models["fragile"], many)
    y = np.ones((9, 2), np.float32)
    with streamssm.connect(server.url, "ema") as stream:
        assert stream.send(y) + stream.send(y.tobytes()) + stream.flush() == expected(
            models["ema"], np.concatenate([y, y])
        )


def test_errors_have_their_names(server):
    with streamssm.connect(server.url, "voice") as stream:
        stream.send(np.array([np.nan], np.float32))
        with pytest.raises(InputError, match="nan"):
            stream.flush()
        with pytest.raises(SnapshotError):
            stream.resume(b"no snapshot")
        stream.reset()
        stream.flush()
        stream.send(np.zeros(8, np.float32))
        with pytest.raises(StreamEndedError):
            stream.rows(PATIENCE)
    with streamssm.connect(server.url, "fragile") as stream:
        stream.send([7])
        with pytest.raises(BackendError):
            stream.rows(PATIENCE)
    with pytest.raises(UsageError, match="which model"):
        streamssm.connect(server.url)
    with pytest.raises(ServerError, match="no model 'nobody'"):
        streamssm.connect(server.url, "nobody")
    with pytest.raises(UsageError, match="no address"):
        streamssm.connect("localhost:8765")
    with pytest.raises(UsageError, match="encoding"):
        streamssm.connect(server.url, encoding="mp3")
    with pytest.raises(ServerError, match="is 'streamssm serve' running there"):
        streamssm.connect("ws://127.0.0.1:9")


def test_an_error_leaves_no_answer_behind(server, models):
    x, nan = voice(), np.array([np.nan], np.float32)
    with streamssm.connect(server.url, "voice") as stream:
        rows = stream.send(x[:5000])
        for _ in range(2):
            stream._put(nan.tobytes())
        for _ in range(2):  # each is raised once, and neither ends the sequence
            with pytest.raises(InputError, match="nan"):
                stream.flush()
        rows += stream.send(x[5000:])
        assert rows + stream.flush() == expected(models["voice"], x)
        with pytest.raises(SnapshotError):
            stream.resume(b"no snapshot")
        stream.reset()
        assert stream.send(x) + stream.flush() == expected(models["voice"], x)


def test_a_late_answer_is_not_that_of_the_next_call(server, models):
    x = voice()
    with streamssm.connect(server.url, "voice") as stream:
        for message in ('{"type": "flush"}', '{"type": "reset"}', *stream._messages(x)):
            stream._put(message)  # as by calls that gave up waiting
        assert stream.flush() == expected(models["voice"], x)


def test_an_error_that_was_raised_is_not_why_a_connection_ends(models):
    with Background(models) as server, streamssm.connect(server.url) as stream:
        stream.send(np.array([np.nan], np.float32))
        with pytest.raises(InputError):
            stream.rows(PATIENCE)
        server.drain()
        with pytest.raises(ServerError, match="ended the connection"):
            stream._until("never")


def test_chunks_that_are_no_frames_are_refused(server, models):
    x = voice()
    stereo = np.stack([x, 0 * x], 1)
    with streamssm.connect(server.url, "voice") as stream:
        for bad in ("text", 3.0, None, [[1.0], [2.0, 3.0]], stereo):
            with pytest.raises(InputError):
                stream.send(bad)
        assert stream.send(x[:, None]) + stream.flush() == expected(models["voice"], x)
    with streamssm.connect(server.url, "voice", channels=2) as stream:
        assert stream.send(2 * stereo) + stream.flush() == expected(models["voice"], x)
    with streamssm.connect(server.url, "fragile") as stream, pytest.raises(InputError, match="sequence"):
        stream.send(3)


def test_a_chunk_may_be_longer_than_a_message(server, models):
    x = np.tile(voice(), 12)
    assert 4 * len(x) > 1 << 20
    with streamssm.connect(server.url, "voice") as stream:
        most = stream.ready["max_message"]
        rows = stream.send(x)
        assert rows + stream.flush() == expected(models["voice"], x)
        stream.reset()
        stream._put(x[: most // 4].tobytes())  # one message of exactly as much as is taken
        rows = stream.send(x[most // 4 :])
        assert rows + stream.flush() == expected(models["voice"], x)


def test_what_is_no_snapshot_is_never_announced(server, models):
    x = voice()
    with streamssm.connect(server.url, "voice") as stream:
        rows = stream.send(x[:5000])
        for bad in (None, "text", [], x, bytes(stream.ready["max_message"] + 1)):
            with pytest.raises(SnapshotError):
                stream.resume(bad)
        rows += stream.send(x[5000:])  # and not taken for a snapshot
        assert rows + stream.flush() == expected(models["voice"], x)


def test_fractions_are_not_cut_off(server):
    with streamssm.connect(server.url, "voice", encoding="s16le") as stream:
        with pytest.raises(InputError, match="float64"):
            stream.send([0.5, -0.7])
        assert stream.send([1, 2]) == stream.send([]) == []


def test_full_and_locked_servers(models):
    with Background(models, slots=1, token="t") as server:
        with pytest.raises(ServerError, match="token"):
            streamssm.connect(server.url)
        with streamssm.connect(server.url, token="t"), pytest.raises(PoolFullError, match="1 slots"):
            streamssm.connect(server.url, token="t")


def test_a_server_that_ends_says_what_is_left(models):
    x = voice()[:14000]
    with Background(models) as server, streamssm.connect(server.url) as stream:
        rows = stream.send(x)
        stream.snapshot()  # all is there
        server.drain()
        with pytest.raises(ServerError, match="ended the connection"):
            stream._until("never")
        assert rows + stream.arrived() == expected(models["voice"], x)


def test_the_same_for_asyncio(server, models):
    async def scenario():
        x = voice()
        async with await aconnect(server.url, "voice", emit="items") as stream:
            rows = await stream.send(x[:9000])
            saved = await stream.snapshot()
            rows += stream.arrived()
        async with await aconnect(server.url, "voice", emit="items") as stream:
            assert await stream.resume(saved) == 9000
            rows += await stream.send(x[9000:])
            rows += await stream.flush()
            assert rows == expected(models["voice"], x, "items")
            await stream.reset()
            await stream._put(np.array([np.nan], np.float32).tobytes())
            with pytest.raises(InputError):
                await stream.flush()
            rows = await stream.send(x)
            assert rows + await stream.flush() == expected(models["voice"], x, "items")
        with pytest.raises(ServerError, match="no model"):
            await aconnect(server.url, "nobody")

    run(scenario)
