import numpy as np
import pytest

from streamssm import clock
from streamssm.draw import draw_split
from streamssm.manifest import Input, Manifest, Output
from streamssm.report import Latencies, RunReport, latency_text


def manifest(**fields) -> Manifest:
    spec = Input("x", "samples", "float32", rate=1000.0, hop=10)
    values = {"lookahead": 20, "block": 40, **fields}
    return Manifest(1, "m", "0" * 64, "t", spec, (Output("y", "features", (), (1, 10)),), (), **values)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 10.0])
def test_quantiles_are_within_a_percent(scale):
    values = np.random.default_rng(0).lognormal(size=5000) * scale
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    for fraction in (0.5, 0.9, 0.99, 0.999):
        exact = np.quantile(values, fraction, method="inverted_cdf")
        assert exact * 0.9999 <= latencies.quantile(fraction) <= exact * 1.0101
    assert latencies.largest == values.max()
    assert latencies.total == pytest.approx(values.sum())


def test_no_pushes_and_extremes():
    latencies = Latencies()
    assert latencies.milliseconds()["p99_9"] == 0.0
    for value in (-1.0, 0.0, 1e9):
        latencies.add(value)
    assert latencies.quantile(1.0) == 1e9


def test_algorithmic_latency_is_apart_from_compute():
    report = RunReport(manifest(), 40)
    report.add(items=100, compute=0.02, latency=0.03)
    report.add(items=100, compute=0.04, latency=0.2)
    summary = report.summary()
    assert summary["algorithmic_latency"]["total_ms"] == 60.0
    assert summary["algorithmic_latency"]["block_ms"] == 40.0
    assert summary["seconds"] == 0.2
    assert summary["real_time_factor"] == pytest.approx(0.3)
    assert summary["deadline_misses"] == 1
    assert "algorithmic latency 60 ms (block 40 + look-ahead 20), hop 10 ms" in report.text()


def test_without_a_clock_there_is_no_real_time():
    spec = Input("x", "tokens", "int64", vocabulary=4)
    tokens = Manifest(1, "m", "0" * 64, "t", spec, (Output("y", "logits", (4,)),), (), 1)
    report = RunReport(tokens, 1)
    report.add(5, 0.1, 0.1)
    assert report.real_time_factor is None
    assert report.summary()["deadline_misses"] is None
    assert "5 items" in report.text()
    assert latency_text(tokens, 1) == "algorithmic latency 1 items (block 1 + look-ahead 0), hop 1 items"


@pytest.mark.parametrize(
    ("items", "rate", "expected"), [(1, 3, 0.333333), (2, 3, 0.666667), (160, 16000, 0.01)]
)
def test_times_are_rounded_to_microseconds(items, rate, expected):
    assert clock.seconds(items, clock.exact(rate)) == expected


def test_a_rate_is_the_decimal_it_prints_as():
    assert clock.seconds(1, clock.exact(0.1)) == 10.0
    assert clock.items_at_least(0.3, clock.exact(100.0)) == 30
    assert clock.items_at_least(0.0, clock.exact(100.0)) == 1


@pytest.mark.parametrize("items", [0, 1, 17, 30000])
def test_a_split_adds_up(items):
    rng = np.random.default_rng(1)
    for _ in range(20):
        lengths = draw_split(items, 160, rng)
        assert sum(lengths) == items
        assert min(lengths, default=0) >= 0
