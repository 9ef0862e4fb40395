"""Every checkpoint family equals transformers: whole, split, in single steps, and as a file."""

from __future__ import annotations

import pytest
import torch
from families import CASES, ITEMS, TOLERANCE, Case, errors, reference, relative_error, save

import streamssm
from streamssm.export import export
from streamssm.export.checkpoints import load_checkpoint

try:
    from families_b import CASES as MORE
except ModuleNotFoundError:
    MORE = {}

ALL = {**CASES, **MORE}
EVERY = [pytest.param(case, id=f"{name}-{i}") for name, cases in ALL.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize("case", EVERY)
def test_logits_equal_transformers(case: Case, tmp_path):
    model = case.model()
    wanted = reference(model, case.tokens(), case.window)
    assert wanted.abs().max() > 0.1
    layer = load_checkpoint(save(model, tmp_path), window=case.window).materialise()
    found = errors(layer, case.tokens(), wanted)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("case", [pytest.param(cases[0], id=name) for name, cases in ALL.items()])
def test_the_file_equals_transformers(case: Case, tmp_path):
    model = case.model()
    wanted = reference(model, case.tokens(), case.window)[0]
    checkpoint = load_checkpoint(save(model, tmp_path / "checkpoint"), window=case.window)
    path = tmp_path / "model.onnx"
    export(checkpoint.layer, path, **checkpoint.export_options())
    opened = streamssm.load(path)
    tokens = case.tokens()[0].numpy()
    for block in (1, 7, ITEMS):
        found = opened.scan(tokens, block=block)
        assert relative_error(torch.from_numpy(found), wanted) < TOLERANCE
