"""A tokenizer in an exported file: what travels, what is refused, what quantising keeps."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from made_tokenizers import content
from tokenizers import Tokenizer

import streamssm
from streamssm.alphabet import open_alphabet
from streamssm.errors import ExportError
from streamssm.export import build, export, model_options, quantize
from streamssm.generation import generate
from streamssm.scoring import log_likelihoods, score

TEXT = "The quick brown fox, 漢字 and 12345."


def config(vocabulary: int) -> dict:
    return {
        "input": {"kind": "tokens", "vocabulary": vocabulary},
        "pattern": ["mamba"],
        "d_model": 128,
        "head": {"size": vocabulary, "tied": True},
    }


def write(path: Path, vocabulary: int, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(config(vocabulary)).eval()
    export(model, path, **model_options(config(vocabulary)), **options)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """As transformers saves it: the tokenizer.json lies in the folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "tokenizer.json").write_text(content("llama3"))
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    size = Tokenizer.from_str(content("llama3")).get_vocab_size() + 5
    return write(folder / "m.onnx", size, tokenizer=folder, end=(0,)), folder / "m.onnx"


def test_scores_are_those_of_the_torch_model(exported):
    module, path = exported
    model = streamssm.load(path)
    assert (model.manifest.input.alphabet, model.manifest.input.end) == ("tokenizer", (0,))
    scores, _ = score(model, TEXT)
    ids = Tokenizer.from_str(content("llama3")).encode(TEXT).ids
    with torch.no_grad():
        rows = module(torch.tensor([ids]))[0][0].numpy()
    wanted = [log_likelihoods(row)[token] for row, token in zip(rows, ids[1:], strict=False)]
    assert [entry.token for entry in scores] == ids
    np.testing.assert_allclose([entry.log_likelihood for entry in scores[1:]], wanted, atol=1e-4)


def test_a_quantised_file_keeps_its_tokenizer(exported, tmp_path):
    quantize(exported[1], tmp_path / "q.onnx", weights="int8", block_size=32)
    exact, rounded = streamssm.load(exported[1]), streamssm.load(tmp_path / "q.onnx")
    assert rounded.file.tokenizer == exact.file.tokenizer
    assert [e.token for e in score(rounded, TEXT)[0]] == [e.token for e in score(exact, TEXT)[0]]
    assert len(list(generate(rounded, TEXT, 5, temperature=0))) <= 5


def test_nucleotides_and_bytes_are_said_by_the_file(tmp_path):
    write(tmp_path / "dna.onnx", 5, alphabet="nucleotides")
    assert open_alphabet(streamssm.load(tmp_path / "dna.onnx").file).name == "nucleotides"
    write(tmp_path / "more.onnx", 260, alphabet="bytes")
    assert [e.token for e in score(streamssm.load(tmp_path / "more.onnx"), b"\xffa")[0]] == [255, 97]


@pytest.mark.parametrize(
    ("vocabulary", "options", "message"),
    [
        (300, {"tokenizer": "folder"}, "the model has 300: they do not belong together"),
        (600, {"tokenizer": "folder", "alphabet": "bytes"}, "contradicts tokenizer="),
        (600, {"alphabet": "tokenizer"}, "needs tokenizer="),
        (600, {"tokenizer": b"{}"}, "cannot be read"),
        (600, {"tokenizer": "missing.json"}, "missing.json cannot be read: No such file"),
        (600, {"end": (600,)}, "end = .600. is not all among the model's 600 tokens"),
        (100, {"alphabet": "bytes"}, "needs 256 tokens, there are 100"),
        (600, {"alphabet": "runes"}, "runes"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, folder, vocabulary, options, message):
    if options.get("tokenizer") == "folder":
        options = options | {"tokenizer": folder}
    with pytest.raises(ExportError, match=message):
        write(tmp_path / "x.onnx", vocabulary, **options)
    assert not list(tmp_path.iterdir())
