"""The README's Python runs as printed."""

from __future__ import annotations

import re
import wave
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = (0.1 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    with wave.open("meeting.wav", "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    exec(compile(snippet, README.name, "exec"), {"samples": samples})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 4
