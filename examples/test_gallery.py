"""The gallery is what the examples' scores say, and says what to run where there are none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("gallery", Path(__file__).with_name("gallery.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
gallery = importlib.util.module_from_spec(_SPEC)
sys.modules["gallery"] = gallery
_SPEC.loader.exec_module(gallery)


def test_the_page_is_what_the_scores_say() -> None:
    """A change of scores without the page, or the other way round, is seen."""
    assert gallery.PAGE.read_text() == gallery.page()


def test_scores_that_are_not_there_name_the_command(tmp_path: Path) -> None:
    """An example that was never scored."""
    with pytest.raises(gallery.GalleryError, match=r"evaluate\.py"):
        gallery.read_scores(tmp_path)


def test_scores_of_another_form_name_the_file(tmp_path: Path) -> None:
    """A file by another hand."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scores.json").write_text('{"model": "vad", "parameters": "many"}')
    with pytest.raises(gallery.GalleryError, match=r"scores\.json.*parameters"):
        gallery.read_scores(tmp_path)
