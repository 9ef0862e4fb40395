"""What is said over a websocket: rows are those of `streamssm run`, however the input was cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
from serve_tools import expected, get, run, served, talking, voice
from voice_toy import TOYS

from streamssm.manifest import Input
from streamssm.serving.wire import Asked, Intake


def test_rows_are_those_of_a_stream_alone(models, rng):
    async def scenario():
        x = voice()
        async with served(models) as server:
            for emit in ("events", "items"):
                async with talking(server, emit=emit) as talk:
                    cuts = np.sort(rng.integers(0, len(x), 40))
                    await talk.send(x, cuts)
                    assert await talk.end() == expected(models["voice"], x, emit)
                    assert talk.messages[-1] == {"type": "flushed", "items": len(x)}
                    assert talk.code == 1000

    run(scenario)


def test_many_streams_at_once_do_not_mix(models, rng):
    import asyncio

    async def one(server, seed):
        x = voice() * np.float32(0.5 + seed / 8)
        async with talking(server) as talk:
            await talk.send(x, np.sort(rng.integers(0, len(x), 30)))
            assert await talk.end() == expected(models["voice"], x)

    async def scenario():
        async with served(models) as server:
            await asyncio.gather(*(one(server, seed) for seed in range(8)))

    run(scenario)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_models_of_all_kinds(models, rng, name):
    """Look-ahead, several outputs of unlike ratios, tokens, two results an item."""

    async def scenario():
        x = TOYS[name]().random(77, rng)
        async with served(models, name) as server, talking(server, emit="items", levels=1) as talk:
            for part in np.split(x, (0, 5, 6, 40)):
                await talk.say("input", x=part.tolist())
            assert await talk.end() == json.loads(json.dumps(expected(models[name], x, "items")))
            assert talk.of("levels")

    run(scenario)


class History:
    """What a stream was given since its start, and the rows that came of it."""

    def __init__(self, models, talk, rng):
        self.model, self.talk, self.rng = models["voice"], talk, rng
        self.x = voice(6.0) * np.float32(rng.uniform(0.2, 1))
        self.at, self.before, self.ended = 0, [], False
        self.saved = None

    def rows(self):
        return self.before + self.talk.rows

    async def push(self):
        count = int(self.rng.integers(0, 6000))
        await self.talk.send(self.x[self.at : self.at + count], (count // 3,))
        if self.ended:
            for _ in range(2):
                assert (await self.talk.until("error"))["error"] == "StreamEndedError"
        else:
            self.at = min(len(self.x), self.at + count)

    async def garbage(self):
        await self.talk.socket.send_str("garbage")
        await self.talk.until("error")

    async def flush(self):
        assert (await self.talk.ask("flush", "flushed"))["items"] == self.at
        self.ended = True
        assert self.rows() == expected(self.model, self.x[: self.at])

    async def reset(self):
        await self.talk.ask("reset", "reset")
        self.start(0, [])

    async def snapshot(self):
        if self.ended:
            assert (await self.talk.ask("snapshot", "error"))["error"] == "StreamEndedError"
            return
        assert (await self.talk.ask("snapshot", "snapshot"))["item"] == self.at
        rows = self.rows()
        self.saved = (await self.talk.until("binary"))["data"], self.at, rows

    async def resume(self):
        if self.saved is not None:
            await self.talk.say("resume")
            await self.talk.socket.send_bytes(self.saved[0])
            assert (await self.talk.until("resumed"))["item"] == self.saved[1]
            self.start(*self.saved[1:])

    def start(self, at, before):
        self.at, self.before, self.ended = at, before, False
        self.talk.messages.clear()


@pytest.mark.parametrize("seed", range(6))
def test_any_history_gives_the_rows_of_its_items(models, seed):
    async def scenario():
        rng = np.random.default_rng(seed)
        names = ["push", "push", "push", "garbage", "flush", "reset", "snapshot", "snapshot", "resume"]
        async with served(models) as server, talking(server) as talk:
            history = History(models, talk, rng)
            for name in rng.choice(names, 40):
                await getattr(history, name)()
            await history.flush()

    run(scenario)


def test_ready_says_what_the_model_takes_and_gives(models):
    async def scenario():
        async with served(models) as server, talking(server) as talk:
            ready = talk.messages[0]
            assert (ready["protocol"], ready["model"], ready["events"]) == (1, "voice", True)
            assert (ready["rate"], ready["hop"], ready["block"], ready["lookahead"]) == (8000, 80, 80, 0)
            assert ready["outputs"][0]["per_item"] == 1 / 80
            assert ready["outputs"][0]["labels"] == ["speech"]
            status, _, body = await get(server, "v1/models")
            assert status == 200
            assert body["models"][0] | {"slots": 8, "free": 7, "name": "voice"} == body["models"][0]

    run(scenario)


def test_numbers_as_text(models, rng):
    async def scenario():
        x = rng.standard_normal((23, 2)).astype(np.float32)
        async with served(models, "ema", "fragile") as server:
            async with talking(server, model="ema") as talk:
                await talk.say("input", x=x[:9].tolist())
                await talk.say("input", x=[])
                await talk.send(x[9:])
                assert await talk.end() == expected(models["ema"], x)
            async with talking(server, model="fragile") as talk:
                await talk.say("input", x=[1, 2, 4, 0])
                assert await talk.end() == expected(models["fragile"], np.array([1, 2, 4, 0]))

    run(scenario)


@pytest.mark.parametrize("query", [{"encoding": "s16le"}, {"channels": 2}, {"rate": 16000}])
def test_what_is_not_the_models_own_is_converted(models, query):
    async def scenario():
        x = voice()
        frames = np.stack([x, x], 1) if "channels" in query else x[:, None]
        data = (x * 32768).astype("<i2") if "encoding" in query else frames
        intake = Intake(models["voice"].manifest.input, Asked(**query))
        wanted = np.concatenate([*intake.items(np.ascontiguousarray(frames)), intake.tail()])
        async with served(models) as server, talking(server, **query) as talk:
            await talk.send(data, (999, 1000, 20000))
            assert await talk.end() == expected(models["voice"], wanted)

    run(scenario)


def test_flush_and_reset_start_anew(models):
    async def scenario():
        x = voice()
        wanted = expected(models["voice"], x)
        async with served(models, slots=1) as server, talking(server) as talk:
            for _ in range(2):
                await talk.send(x, (5000,))
                await talk.ask("flush", "flushed")
                await talk.ask("flush", "flushed")  # once more changes nothing
                assert talk.rows == wanted
                await talk.send(x[:10])
                assert (await talk.until("error"))["error"] == "StreamEndedError"
                await talk.ask("reset", "reset")
                talk.messages.clear()
            await talk.send(x[:9000])
            await talk.ask("reset", "reset")  # in the middle
            talk.messages.clear()
            await talk.send(x)
            assert await talk.end() == wanted

    run(scenario)


@pytest.mark.parametrize("emit", ["events", "items", "none"])
@pytest.mark.parametrize("at", [0, 81, 7000, 8641])  # 7000: in the middle of an event
def test_a_snapshot_goes_on_in_another_stream(models, emit, at):
    async def scenario():
        x = voice()
        wanted = [] if emit == "none" else expected(models["voice"], x, emit)
        async with served(models) as server:
            async with talking(server, emit=emit) as talk:
                await talk.send(x[:at])
                assert (await talk.ask("snapshot", "snapshot"))["item"] == at
                saved = (await talk.until("binary"))["data"]
                before = talk.rows
                await talk.send(x[at:])  # the first one goes on as if nothing were
                assert await talk.end() == wanted
            async with talking(server, emit=emit) as talk:
                await talk.send(x[:500])
                await talk.say("resume")
                await talk.socket.send_bytes(saved)
                assert (await talk.until("resumed"))["item"] == at
                talk.messages.clear()
                await talk.send(x[at:])
                assert before + await talk.end() == wanted

    run(scenario)


def test_snapshots_that_do_not_fit_change_nothing(models):
    async def scenario():
        x = voice()
        plain = models["voice"].stream().snapshot()
        async with served(models) as server:
            async with talking(server, emit="items") as talk:
                await talk.ask("snapshot", "snapshot")
                items = (await talk.until("binary"))["data"]
            async with talking(server) as talk:
                await talk.send(x[:7000])
                await talk.ask("input", "error", x=[0] * (1 << 17))
                deep = b'{"a":' + 9999 * b"[" + 9999 * b"]" + b"}"
                long = b'{"a":"' + (1 << 18) * b"a" + b'"}'
                heads = [len(head).to_bytes(8, "little") + head for head in (deep, long)]
                for bad in (b"no snapshot", plain, items, items[:-1] + b"x", b"", *heads):
                    await talk.say("resume")
                    await talk.socket.send_bytes(bad)
                    error = await talk.until("error")
                    assert (error["error"], error["fatal"]) == ("SnapshotError", False)
                await talk.say("resume")
                await talk.say("ping")
                assert "text came instead" in (await talk.until("error"))["message"]
                await talk.send(x[7000:])
                assert await talk.end() == expected(models["voice"], x)
            async with talking(server, rate=16000) as talk:
                await talk.send(x)
                assert (await talk.ask("snapshot", "error"))["error"] == "UsageError"
                await talk.say("resume")
                await talk.socket.send_bytes(items[: len(items) // 4 * 4])  # it could be taken for samples
                assert (await talk.until("error"))["error"] == "UsageError"
                assert (await talk.ask("flush", "flushed"))["items"] == len(x) // 2

    run(scenario)


GARBAGE = [
    "no json",
    "[]",
    '{"x": 1}',
    '{"type": "nonsense"}',
    '{"type": "input"}',
    '{"type": "input", "x": [1, null]}',
    '{"type": "input", "x": [1, "2"]}',
    '{"type": "input", "x": [[1, 2]]}',
    '{"type": "input", "x": [[1], []]}',
    '{"type": "input", "x": [[1], 2]}',
    '{"type": "input", "x": [1e999]}',
    '{"type": "input", "x": [1e300]}',
    "[" * 5000,
    b"abc",
    np.array([0.1, np.nan], np.float32).tobytes(),
    np.array([np.inf], np.float32).tobytes(),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_refused_whole_and_the_stream_goes_on(models, garbage):
    async def scenario():
        x = voice()
        async with served(models) as server, talking(server) as talk:
            await talk.send(x[:7000])
            await (talk.socket.send_bytes if isinstance(garbage, bytes) else talk.socket.send_str)(garbage)
            error = await talk.until("error")
            assert (error["error"], error["fatal"]) == ("InputError", False)
            await talk.send(x[7000:])
            assert await talk.end() == expected(models["voice"], x)

    run(scenario)


def test_who_is_never_understood_is_given_up(models):
    async def scenario():
        async with served(models) as server, talking(server) as talk:
            for _ in range(40):
                await talk.socket.send_str("garbage")
            await talk.rest()
            assert talk.code == 1011
            assert talk.messages[-1]["fatal"]
            assert len(talk.of("error")) == 32

    run(scenario)


def test_levels_and_stats(models):
    async def scenario():
        x = voice(1.5)
        async with served(models) as server, talking(server, emit="none", levels=1, stats=1) as talk:
            await talk.send(x, (4000, 4321))
            stats = await talk.until("stats")
            assert stats["items"] == len(x)
            assert 0 < stats["p50_ms"] <= stats["p99_ms"] < 1e4
            assert await talk.ask("ping", "pong", id=[1, "a"]) == {"type": "pong", "id": [1, "a"]}
            await talk.end()
            levels = talk.of("levels")
            starts = [level["start"] for level in levels]
            values = np.concatenate([level["values"] for level in levels])
            assert starts == list(np.cumsum([0, *(len(level["values"]) for level in levels)])[:-1])
            np.testing.assert_allclose(values, models["voice"].scan(x)[:, 0], atol=6e-5)
            assert talk.rows == []

    run(scenario)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({"model": "nobody"}, 404, "there are voice, ema"),
        ({}, 400, "which model"),
        ({"model": "voice", "emit": "tokens"}, 400, "emit=tokens"),
        ({"model": "ema", "emit": "events"}, 400, "no event rule"),
        ({"model": "voice", "encoding": "mp3"}, 400, "encoding=mp3"),
        ({"model": "voice", "rate": "fast"}, 400, "rate"),
        ({"model": "voice", "rate": "1"}, 400, "more than 256 to 1"),
        ({"model": "voice", "rate": "nan"}, 400, "rate=nan"),
        ({"model": "ema", "rate": "25"}, 400, "25 items a second"),
        ({"model": "ema", "channels": "3"}, 400, "3"),
        ({"model": "voice", "channels": "0"}, 400, "channels=0"),
        ({"model": "voice", "stats": "yes"}, 400, "stats=yes"),
        ({"model": "voice", "colour": "red"}, 400, "'colour'"),
        ({"model": "voice"}, 426, "websocket"),
    ],
)
def test_what_cannot_be_served_is_refused_before(models, query, status, message):
    from urllib.parse import urlencode

    async def scenario():
        async with served(models, "voice", "ema") as server:
            found, headers, body = await get(server, f"v1/stream?{urlencode(query)}")
            assert found == status, body
            assert message in body["message"]
            assert "default-src 'none'" in headers["Content-Security-Policy"]

    run(scenario)


def test_slices_of_a_resampled_message_are_bounded():
    spec = Input("audio", "samples", "float32", (), rate=16000.0)
    intake = Intake(spec, Asked(rate=100.0))
    parts = list(intake.items(np.zeros((5000, 1), np.float32)))
    assert max(map(len, parts)) < 1 << 17  # soxr gives in lumps
    assert sum(map(len, parts)) + len(intake.tail()) == 5000 * 160
