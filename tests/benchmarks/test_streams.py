"""The benchmark of many streams: what it makes of its figures, and a short run of its parts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import streams  # noqa: E402
from crowd.paced import Feed, paced  # noqa: E402

import streamssm  # noqa: E402

SPOKEN = {"clients": 75, "admitted": 50, "refused": 25, "lost": 0, "incomplete": 0, "missed": 0.002}
SPOKEN |= {"p50_ms": 4.0, "p99_ms": 9.0, "max_ms": 30.0}


def test_bars_say_what_was_missed():
    assert streams.overload_bars(SPOKEN)[0].good
    for worse in ({"missed": 0.02}, {"refused": 24}, {"lost": 1}, {"admitted": 49}):
        assert not streams.overload_bars(SPOKEN | worse)[0].good
    assert streams.serve_bars(SPOKEN)[0].good
    for worse in ({"p99_ms": 20.1}, {"incomplete": 1}, {"admitted": 49}):
        assert not streams.serve_bars(SPOKEN | worse)[0].good
    beside = {"others": 9, "p99_ms": {"alone": 10.0, "crowded": 10.9}}
    assert streams.beside_bars(beside, "silent clients")[0].good
    beside["p99_ms"]["crowded"] = 11.1
    bar = streams.beside_bars(beside, "silent clients")[0]
    assert "| 9 silent clients beside 50 | p99 10.0 -> 11.1 ms |" in streams.markdown([bar])
    assert "MISSED" in streams.markdown([bar])


def test_a_paced_pool_is_given_what_is_due_and_no_more():
    model = streamssm.load("vad")
    feed = Feed(model, 3, 640)
    found = feed.run(0.5, 0.01)
    assert found["missed"] < 1
    for key in feed.pool:
        due = (0.5 - feed.delay[key]) / feed.lasts
        assert feed.pool.position(key) / feed.hop <= due + 1
        assert feed.blocks[key] >= 5


def test_lateness_counts_from_due_time():
    feed = Feed(streamssm.load("vad"), 2, 640)
    summary = feed._summary(np.array([0.001] * 98 + [0.039, 0.041]))
    assert summary["missed"] == pytest.approx(0.01)
    assert summary["p50_ms"] == pytest.approx(1.0)


def test_a_paced_run_by_its_numbers():
    found = paced("vad", 2, 0.3, 0.01)
    assert found["streams"] == 2
    assert 0 < found["busy"] < 1
    assert found["streams_per_cpu"] > 2


def test_speakers_idlers_and_dawdlers_on_a_server():
    pytest.importorskip("aiohttp")
    with streams.served("vad", 5) as address:
        with streams.others("idle", address, 2), streams.others("slowloris", address, 2):
            found = json.loads(streams.child("clients", "speak", *address, 4, 1.5))
        assert (found["admitted"], found["refused"], found["lost"]) == (3, 1, 0)
        assert found["incomplete"] == 0
        assert 0 < found["p50_ms"] <= found["p99_ms"]
