# ruff: noqa: D103
"""python -m pytest examples/audio/test_checkpoints.py: files that are no checkpoints are said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dataset import DataError
from model import load

HERE = Path(__file__).parent


@pytest.mark.parametrize("content", [b"", b"\xbb\x90T\xd3", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_file_that_torch_did_not_write_is_refused(content, tmp_path) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"some.pt is no"):
        load(path)


def test_a_file_of_another_kind_is_refused(tmp_path) -> None:
    torch.save(torch.zeros(2), tmp_path / "some.pt")
    with pytest.raises(DataError, match=r"some.pt is no checkpoint: it holds a Tensor"):
        load(tmp_path / "some.pt")


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"config": {"layers": 3, "blocks": ()}, "weights": {}, "notes": {}},
        {"config": {"blocks": ("mlp",)}, "weights": {}, "notes": {}},
        {"config": {"blocks": ("other",)}, "weights": {}, "notes": {}},
    ],
)
def test_the_checkpoint_of_another_network_is_refused(stored, tmp_path) -> None:
    torch.save(stored, tmp_path / "some.pt")
    with pytest.raises(DataError, match=r"some.pt is no checkpoint of the voice activity network: give a"):
        load(tmp_path / "some.pt")


@pytest.mark.parametrize("program", ["evaluate.py --checkpoint", "export_model.py"])
def test_the_programs_say_it_in_one_line(program, tmp_path) -> None:
    name, *flag = program.split()
    (tmp_path / "some.pt").write_bytes(b"no checkpoint")
    command = [sys.executable, HERE / name, *flag, tmp_path / "some.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "some.pt is no file of torch, or is damaged" in done.stderr
    assert "Traceback" not in done.stderr
