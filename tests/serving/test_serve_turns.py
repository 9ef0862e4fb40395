"""Turns: of one client among the others, of answers among rows, of a client among its own messages."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from aiohttp import web
from serve_tools import run, served, talking, voice
from test_serve_limits import UPGRADE, frame, raw, upgraded

from streamssm.pool import Pool


@pytest.fixture
def slow_sends(monkeypatch):
    """A client takes a while for each message."""
    send = web.WebSocketResponse.send_str

    async def send_slowly(self, text, *more):
        await send(self, text, *more)
        await asyncio.sleep(0.005)

    monkeypatch.setattr(web.WebSocketResponse, "send_str", send_slowly)


@pytest.mark.parametrize(
    "message", [frame(2, bytes(4)), b"\x89\x80" + bytes(4), frame(1, b'{"type":"ping"}')]
)
def test_a_thousand_messages_at_once_are_not_one_turn(models, message):
    async def scenario():
        async with served(models) as server, raw(server) as (reader, writer):
            await upgraded(reader, writer, b"&emit=none")
            session = next(iter(server._sessions))
            most = 0

            async def watch():
                nonlocal most
                before = 0
                while True:
                    await asyncio.sleep(0)
                    most, before = max(most, session._received - before), session._received

            watching = asyncio.ensure_future(watch())
            writer.write(message * 1000)
            while session._received < 1000:
                await asyncio.sleep(0.001)
            watching.cancel()
            assert most <= 16

    run(scenario)


@pytest.mark.parametrize("count", [0, 79])
def test_messages_that_complete_no_block_are_not_remembered(models, count):
    async def scenario():
        async with served(models) as server, talking(server) as talk:
            for _ in range(count):
                await talk.send(np.zeros(1, np.float32))
            await talk.ask("ping", "pong")
            session = next(iter(server._sessions))
            assert not session._late._arrivals
            await talk.send(np.zeros(80 - count, np.float32))
            await talk.ask("flush", "flushed")
            assert len(session._late._latest) == 1

    run(scenario)


@pytest.mark.parametrize(("ask", "answer"), [("reset", "reset"), ("snapshot", "snapshot")])
def test_an_answer_comes_after_the_rows_before_it(models, slow_sends, ask, answer):
    async def scenario():
        x = voice(0.2)
        async with served(models) as server, talking(server, emit="items") as talk:
            await talk.send(x)
            while len(talk.rows) < 2:
                await talk.hear()
            await talk.ask(ask, answer)
            rows = len(talk.rows)
            assert rows == len(x) // 80 if ask == "snapshot" else rows >= 2
            await talk.ask("ping", "pong")
            await talk.say("eof")
            await talk.rest()
            assert len(talk.rows) == rows
            assert talk.of("flushed")[0]["items"] == (len(x) if ask == "snapshot" else 0)

    run(scenario)


def test_levels_that_are_ready_together_are_one_message(models, slow_sends):
    async def scenario():
        x = voice(2.0)
        async with served(models) as server, talking(server, emit="none", levels=1) as talk:
            await talk.send(x)
            await talk.end()
            levels = talk.of("levels")
            assert sum(len(level["values"]) for level in levels) == len(x) // 80
            assert len(levels) < len(x) // 80 / 2

    run(scenario)


def test_who_is_worked_for_is_not_idle(models, monkeypatch):
    step = Pool.step

    def step_slowly(self):
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Pool, "step", step_slowly)

    async def scenario():
        async with served(models, idle_timeout=0.3) as server, talking(server, emit="none") as talk:
            await talk.send(np.zeros(100 * 80, np.float32))  # 36 blocks more than may wait
            await talk.end()
            assert talk.code == 1000

    run(scenario)


def test_who_does_not_take_its_close_frame_is_cut_off(models):
    """What it was sent is more than the transport keeps, and less than makes a send wait."""

    async def scenario():
        async with (
            served(models, "voice", idle_timeout=1, send_timeout=0.3) as server,
            raw(server, 4096) as (_, writer),
        ):
            writer.transport.pause_reading()
            writer.write(UPGRADE % b"&emit=none")
            said = frame(1, b'{"type":"ping","id":"%s"}' % (b"x" * 80))
            while not server._sessions:
                await asyncio.sleep(0.01)
            session = next(iter(server._sessions))
            while not session._ws._req._protocol.writing_paused:
                writer.write(said * 50)
                await asyncio.sleep(0.02)
            began = time.monotonic()
            while server._sessions:
                await asyncio.sleep(0.02)
            assert time.monotonic() - began < 5

    run(scenario)
