"""The code in docs/convert.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from streamssm.export.convert import registry

PAGE = Path(__file__).parents[3] / "docs" / "convert.md"


def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 2
    assert capsys.readouterr().out.strip() == "1 0 ['front.past', 'gru.h0']"
    assert (tmp_path / "tagger.onnx").exists()
    assert list(names["layer"].state_spec()) == ["1.h"]
    assert isinstance(names["layer"].model, nn.Sequential)
