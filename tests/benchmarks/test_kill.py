"""The kill benchmark on a small model and few kills; in full: python benchmarks/kill.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "cli")]

from kill import cases, run_case  # noqa: E402
from voice_toy import RATE, voice_toy  # noqa: E402


@pytest.mark.parametrize("number", range(3))
def test_killed_runs_lose_and_double_nothing(tmp_path, number):
    model = voice_toy().write(tmp_path)
    case = cases(tmp_path, str(model), RATE, seconds=30)[number]
    found = run_case(case, tmp_path / "case", kills=4, seed=number)
    assert found.kills >= 4
    assert found.good, found
