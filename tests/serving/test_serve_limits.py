"""Who is let in, who is sent away, and that nobody's trouble is anybody else's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time

import aiohttp
import numpy as np
import pytest
from serve_tools import expected, get, run, served, talking, voice


@contextlib.asynccontextmanager
async def undisturbed(server, models):
    """A stream that is sent its input during the block, and must come out as if it were alone."""
    x = voice()
    async with talking(server, model="voice") as talk:
        await talk.send(x[:7000])
        yield
        await talk.send(x[7000:])
        assert await talk.end() == expected(models["voice"], x)


@contextlib.asynccontextmanager
async def raw(server, receive: int | None = None):
    """A bare connection; ``receive`` bytes may wait to be read."""
    with socket.socket() as peer:
        if receive is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        peer.connect((server.settings.host, server.port))
        peer.setblocking(False)
        kept = socket.socket(fileno=peer.detach())
    reader, writer = await asyncio.open_connection(sock=kept)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


UPGRADE = (
    b"GET /v1/stream?model=voice%s HTTP/1.1\r\nHost: localhost\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
TOO_BIG = struct.pack("!BBH", 0x88, 2, 1009)  # a close frame


def frame(opcode: int, data: bytes, size: int | None = None) -> bytes:
    """A masked frame; the mask is zero. ``size`` may promise more than there is."""
    return struct.pack("!BBQI", 0x80 | opcode, 0xFF, len(data) if size is None else size, 0) + data


async def upgraded(reader, writer, query: bytes = b"") -> None:
    writer.write(UPGRADE % query)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")


async def gone(reader) -> bytes:
    """Wait until the server has closed the connection; what it said before."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.wait_for(reader.read(1 << 16), 10):
            said += data
    return said


def test_when_it_is_full_it_says_when_to_come_back(models):
    async def scenario():
        async with served(models, slots=2) as server:
            async with talking(server), talking(server):
                status, headers, body = await get(server, "v1/stream")
                assert (status, body["error"]) == (503, "PoolFullError")
                assert int(headers["Retry-After"]) > 0
                with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                    async with talking(server):
                        pass
            await until(lambda: not server._sessions)
            async with undisturbed(server, models):
                pass

    run(scenario)


async def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_a_message_of_100_mb_is_not_even_read(models):
    async def scenario():
        async with served(models) as server, undisturbed(server, models), raw(server) as (reader, writer):
            await upgraded(reader, writer)
            writer.write(frame(2, bytes(1 << 16), size=100 << 20))
            assert TOO_BIG in await gone(reader)
            await until(lambda: len(server._sessions) == 1)
            assert b'reason="message too big"' in server.metrics.text()

    run(scenario)


def test_many_small_frames_of_one_message_count_together(models):
    async def scenario():
        async with served(models, max_message=1000) as server, raw(server) as (reader, writer):
            limit = server._max_message
            await upgraded(reader, writer)
            writer.write(struct.pack("!BBHI", 0x02, 0xFE, 60000, 0) + bytes(60000))
            for _ in range(limit // 60000 + 1):
                writer.write(struct.pack("!BBHI", 0x00, 0xFE, 60000, 0) + bytes(60000))
            assert TOO_BIG in await gone(reader)

    run(scenario)


def test_a_silent_client_is_flushed_and_let_go(models):
    async def scenario():
        x = voice()[:14000]  # ends in the middle of an event
        async with served(models, idle_timeout=0.3) as server, talking(server) as talk:
            await talk.send(x)
            for _ in range(4):
                await asyncio.sleep(0.15)
                await talk.say("ping")
            assert await talk.rest() == expected(models["voice"], x)
            assert talk.code == 1008

    run(scenario)


def test_a_client_that_never_reads_is_cut_off(models):
    async def scenario():
        chunk = frame(2, np.random.default_rng(0).standard_normal(8000).astype("<f4").tobytes())
        async with (
            served(models, "ema", "voice", send_timeout=0.5) as server,
            undisturbed(server, models),
            raw(server, 4096) as (_, writer),
        ):
            writer.transport.pause_reading()
            writer.write(UPGRADE.replace(b"voice", b"ema") % b"&emit=items")
            while not server.metrics.closed["ema", "slow client"]:
                if writer.transport.get_write_buffer_size() < 1 << 18 and not writer.transport.is_closing():
                    writer.write(chunk)
                await asyncio.sleep(0.001)
            assert len(server._sessions) == 1

    run(scenario)


def test_a_slow_reader_is_waited_for_and_loses_nothing(models):
    async def scenario():
        x = np.tile(voice(), 8)
        async with served(models) as server, talking(server, emit="items") as talk:
            sending = asyncio.ensure_future(talk.send(x, range(0, len(x), 8000)))
            await asyncio.sleep(0.5)
            session = next(iter(server._sessions))
            assert session._stream.unread <= 2 * 64 * 2
            heard = asyncio.ensure_future(talk.until("flushed"))
            await sending
            await talk.say("flush")
            await heard
            assert len(talk.rows) == len(x) // 80

    run(scenario)


def test_connections_that_ask_for_nothing_are_let_go(models):
    async def scenario():
        async with (
            served(models, header_timeout=0.4) as server,
            undisturbed(server, models),
            contextlib.AsyncExitStack() as stack,
        ):
            streams = [await stack.enter_async_context(raw(server)) for _ in range(50)]
            ends = asyncio.gather(*(gone(reader) for reader, _ in streams))
            for (
                byte
            ) in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n":  # a byte at a time, and never the end
                for _, writer in streams:
                    writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
            await asyncio.wait_for(ends, 5)
            await until(lambda: server._door.let_go == 50)
            async with raw(server) as (reader, writer):  # one that asked once, and then no more
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await asyncio.wait_for(gone(reader), 5)

    run(scenario)


def test_connections_beyond_the_limit_are_turned_away(models):
    async def scenario():
        async with served(models, max_connections=3) as server, contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(raw(server))
            await until(lambda: len(server._door) == 3)
            async with raw(server) as (reader, _):
                await asyncio.wait_for(gone(reader), 5)
            assert server._door.turned_away == 1
            await stack.aclose()
            await until(lambda: not len(server._door))
            assert (await get(server, "healthz"))[0] == 200

    run(scenario)


def test_a_fault_of_the_model_ends_only_the_stream_that_it_befell(models):
    async def scenario():
        good, rng = models["fragile"], np.random.default_rng(0)
        inputs = [rng.integers(0, 5, 60) for _ in range(5)]
        async with served(models, "fragile", gather=0.02) as server, contextlib.AsyncExitStack() as stack:
            talks = [await stack.enter_async_context(talking(server)) for _ in inputs]
            bad = [await stack.enter_async_context(talking(server)) for _ in range(2)]
            for at in range(0, 60, 6):
                for talk, x in zip(talks, inputs, strict=True):
                    await talk.say("input", x=x[at : at + 6].tolist())
                if at == 30:
                    for talk in bad:
                        await talk.say("input", x=[1, 7])
            for talk in bad:
                await talk.rest()
                assert talk.code == 1011
                assert talk.messages[-1]["error"] == "BackendError"
                assert talk.messages[-1]["fatal"]
            for talk, x in zip(talks, inputs, strict=True):
                assert await talk.end() == expected(good, x)

    run(scenario)


def test_a_pool_that_cannot_go_on_is_said(models, monkeypatch, caplog):
    async def scenario():
        async with served(models) as server, talking(server) as talk:

            def broken():
                raise KeyError("a defect")

            offer = server._offers["voice"]
            monkeypatch.setattr(offer.pool._pool, "wait", lambda _: True)
            monkeypatch.setattr(offer.pool.stepper, "_step", broken)
            await talk.rest()
            assert talk.code == 1011
            assert "defect" not in talk.messages[-1]["message"]
            assert (await get(server, "healthz"))[0] == 500
            assert (await get(server, "v1/stream"))[0] == 500

    run(scenario)
    assert "a defect" in caplog.text


def test_clients_that_vanish_free_their_slots(models):
    async def scenario():
        async with served(models, slots=2) as server:
            for _ in range(5):
                async with raw(server) as (reader, writer), raw(server) as (other, second):
                    await upgraded(reader, writer)
                    await upgraded(other, second)
                    writer.write(frame(2, bytes(4000)))
                await until(lambda: not server._sessions)
                assert server._offers["voice"].pool.free == 2

    run(scenario)


def test_metrics_count(models):
    async def scenario():
        x = voice()
        async with served(models, slots=1) as server:
            async with talking(server) as talk:
                assert (await get(server, "v1/stream"))[0] == 503
                await talk.socket.send_str("garbage")
                await talk.send(x)
                await talk.until("row")
                status, headers, text = await get(server, "metrics")
                assert status == 200
                assert headers["Content-Type"].startswith("text/plain")
                for line in (
                    'streamssm_streams{model="voice"} 1.0',
                    'streamssm_slots{model="voice"} 1.0',
                    'streamssm_refused_total{status="503"} 1.0',
                    'streamssm_errors_total{error="InputError"} 1.0',
                    'streamssm_streams_opened_total{model="voice"} 1.0',
                ):
                    assert line in text.decode()
                rows = len(await talk.end())
            await until(lambda: not server._sessions)
            text = server.metrics.text().decode()
            assert f'streamssm_rows_total{{model="voice"}} {float(rows)}' in text
            assert f'streamssm_items_total{{model="voice"}} {float(len(x))}' in text
            assert 'streamssm_streams_closed_total{model="voice",reason="eof"} 1.0' in text
            assert 'streamssm_latency_seconds_count{model="voice"} 30' in text
            assert "streamssm_step_seconds_count" in text

    run(scenario)


def test_draining_ends_every_stream_properly(models):
    async def scenario():
        x = voice()[:14000]
        async with served(models) as server, contextlib.AsyncExitStack() as stack:
            talks = [await stack.enter_async_context(talking(server)) for _ in range(4)]
            for talk in talks:
                await talk.send(x)
            await until(lambda: all(session._stream.position == len(x) for session in server._sessions))
            draining = asyncio.ensure_future(server.drain())
            for talk in talks:
                assert await talk.rest() == expected(models["voice"], x)
                assert talk.messages[-1] == {"type": "flushed", "items": len(x)}
                assert talk.code == 1001
            await draining
            with pytest.raises(aiohttp.ClientConnectionError):
                await get(server, "healthz")

    run(scenario)


def test_draining_does_not_wait_for_who_does_not_read(models):
    async def scenario():
        chunk = frame(2, np.random.default_rng(0).standard_normal(8000).astype("<f4").tobytes())
        async with served(models, "ema", send_timeout=0.3) as server, raw(server, 4096) as (_, writer):
            writer.transport.pause_reading()
            writer.write(UPGRADE.replace(b"voice", b"ema") % b"&emit=items")
            await until(lambda: server._sessions)
            session = next(iter(server._sessions))
            while session.sending is None or time.monotonic() - session.sending < 0.1:
                if writer.transport.get_write_buffer_size() < 1 << 18:
                    writer.write(chunk)
                await asyncio.sleep(0.001)
            began = time.monotonic()
            await server.drain()
            assert time.monotonic() - began < 5
            assert not server._sessions

    run(scenario)
