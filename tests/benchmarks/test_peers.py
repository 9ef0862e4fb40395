"""The benchmark's own arithmetic, and its pipe; no peer is needed."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from sidebyside import bars, environments, plan, report, rounds, shapes, truth  # noqa: E402
from sidebyside.worker import Worker, WorkerError  # noqa: E402

TINY = [shape for shape in shapes.SHAPES.values() if shape.tiny]


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_counts_are_those_of_the_weights_drawn(shape):
    weights = shapes.draw_weights(shape)
    matrices = ("embeddings", "in_proj", "x_proj", "dt_proj.weight", "out_proj")
    assert sum(value.size for value in weights.values()) == shapes.parameters(shape)
    linear = sum(value.size for name, value in weights.items() if any(part in name for part in matrices))
    assert linear == shapes.linear_parameters(shape)


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_weights_remember(shape):
    """The logits depend on more than the last few items, so that a lost state is found out."""
    weights, tokens = shapes.draw_weights(shape), shapes.draw_tokens(shape, 48)
    whole = truth.logits(shape, weights, tokens, slice(None))
    late = truth.logits(shape, weights, tokens[16:], slice(None))
    assert truth.error(late, whole[16:]) > 20 * plan.EXACT


def test_every_peer_is_pinned():
    sections = environments.sections()
    needed = {peer.environment for peer in plan.PEERS.values() if peer.environment} | {"silero"}
    assert needed <= set(sections)
    for lines in sections.values():
        for call in environments.pip_calls(lines):
            packages = [word for word in call if not word.startswith("--")]
            assert any("==" in word for word in packages)
            assert all("==" in word for word in packages) or call[0].startswith("--")


def test_a_summary_compares_round_by_round():
    ours, theirs = [[10, 10, 10], [20, 20, 20]], [[30, 30, 30], [40, 40, 40]]
    own = rounds.summary(ours, [10, 20], [[1.0], [0.5, 0.2]])
    seen = rounds.summary(theirs, own["rounds_ns"], [[1.0], [1.0]])
    assert seen["ratios"] == [3.0, 2.0]
    assert seen["ratio"] == 2.5
    assert (own["processor_share"], own["threads"]) == (0.7, 2)


def results() -> dict:
    """What a run of one group, ours and a peer that is inexact beyond one item, would leave."""
    ours = {
        "decode": rounds.summary([[10, 10]], [10], [[1.0]]),
        "push16": rounds.summary([[40]], [40], [[1.0]]),
    }
    theirs = {
        "decode": rounds.summary([[45]], [10], [[1.0]]),
        "push16": rounds.summary([[400]], [40], [[1.0]]),
    }
    rows = {}
    for key, cases in (("ours", ours), ("llama", theirs)):
        rows[key] = rounds.Row(plan.Entry(plan.PEERS[key], "fp32")).result() | {
            "opened": {"bare_mb": 1.0, "versions": {key: "1"}},
            "memory": {"now": 2.0},
            "errors": {"1": 1e-7},
            "exact": {"decode": True, "push16": key == "ours"},
            "cases": cases | ({"prefill": {"why": "it cannot"}} if key == "llama" else {}),
        }
    machine = {"cases": {case: {} for case in ("decode", "push16", "prefill")}}
    group = {"model": "tiny-mamba", "precision": "fp32", "rows": rows, "machine": machine}
    host = {"processor": "P", "system": "S", "python": "3"}
    return {"groups": {"tiny-mamba/fp32": group}, "sections": ["tiny-mamba/fp32"], "host": host, "date": "D"}


def test_an_inexact_peer_gets_no_ratio():
    seen = {(line.what, line.against): line for line in bars.bars(results())}
    assert seen["tiny-mamba step", "llama.cpp"].status == "PASS"
    assert seen["tiny-mamba step", "llama.cpp"].seen == 4.5
    assert seen["tiny-mamba push of 16", "llama.cpp"].status == "not seen"
    page = report.markdown(results())
    assert "INEXACT" in page
    assert "it cannot" in page


def test_a_worker_answers_and_survives_an_error(tmp_path):
    with Worker(Path(sys.executable), "machine", ("-", "-", str(tmp_path)), tmp_path / "log", None) as worker:
        assert len(worker.ask("time", case="spin", count=3)["ns"]) == 3
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("time", case="no such case", count=1)
        assert worker.ask("memory")["peak"] > 0


def test_a_worker_that_dies_says_why(tmp_path):
    worker = Worker(Path(sys.executable), "no_such_worker", (), tmp_path / "log", None)
    with worker, pytest.raises(WorkerError, match="no_such_worker"):
        worker.ask("open")


def test_error_is_relative_to_the_largest():
    assert truth.error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
