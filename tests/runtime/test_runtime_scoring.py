"""Scoring and continuing text from Python: the numbers, the draws, what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_toy import LanguageToy
from made_tokenizers import MADE, content
from tokenizers import Tokenizer
from toy_models import TOYS

import streamssm
from streamssm.alphabet import Piece, open_alphabet
from streamssm.errors import (
    BackendError,
    InputError,
    ManifestError,
    ModelFileError,
    SnapshotError,
    UsageError,
)
from streamssm.generation import Sampler, generate
from streamssm.scoring import Scorer, Totals, can_score, log_likelihoods, require_logits, score

TEXT = "The quick brown 🙂 fox doesn't jump:\n\n  12345 漢字."


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """``toy(name)``: a language model on bytes, letters or a tokenizer, and its open file."""
    folder = tmp_path_factory.mktemp("language")

    def make(name: str, **fields):
        if name not in MADE:
            toy = LanguageToy(256 if name == "bytes" else 5, "" if name == "bytes" else name, **fields)
        else:
            data = content(name)
            size = Tokenizer.from_str(data).get_vocab_size() + 2  # a few that nothing stands for
            toy = LanguageToy(size, "tokenizer", data.encode(), **fields)
        return toy, streamssm.load(toy.write(folder / f"{name}{len(fields)}.onnx"))

    return make


@pytest.mark.parametrize("name", ["bytes", "llama3", "llama2", "bert"])
@pytest.mark.parametrize("block", [1, 4])
def test_scores_are_the_log_softmax_of_the_logits(toy, name, block):
    language, model = toy(name, block=block)
    scores, totals = score(model, TEXT)
    ids = np.array([entry.token for entry in scores])
    if name in MADE:
        whole = Tokenizer.from_str(content(name))
        whole.no_truncation()
        assert ids.tolist() == whole.encode(TEXT).ids
    else:
        assert bytes(ids.tolist()) == TEXT.encode()
    assert scores[0].log_likelihood is None
    found = np.array([entry.log_likelihood for entry in scores[1:]])
    wanted = language.log_likelihoods(ids)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert [entry.index for entry in scores] == list(range(len(ids)))
    assert (totals.tokens, totals.scored) == (len(ids), len(ids) - 1)
    assert totals.mean_nll == pytest.approx(-wanted.mean(), abs=1e-4)
    assert totals.perplexity == pytest.approx(np.exp(-wanted.mean()), rel=1e-3)
    # a token that the tokenizer itself puts first has no bytes, and foretells the first of the text
    unscored = 1 if name == "bytes" else 0
    if name != "llama2":  # its text starts with a token of its own, too
        assert totals.bits_per_byte == pytest.approx(
            -wanted.sum() / np.log(2) / (len(TEXT.encode()) - unscored)
        )


def test_a_text_without_tokens_has_no_mean():
    totals = Totals()
    assert totals.mean_nll is totals.perplexity is totals.bits_per_byte is None
    totals.add(1, -1e4)
    assert totals.perplexity == np.inf


@given(st.lists(st.integers(0, 4), max_size=9), st.lists(st.integers(1, 3)), st.integers(0, 9))
@settings(deadline=None)
def test_a_scorer_joins_tokens_and_logits_in_any_cut(tokens, lag, cut):
    rows = np.random.default_rng(0).standard_normal((len(tokens), 5)).astype(np.float32)
    pieces = [Piece(token, "x", 1) for token in tokens]
    whole = Scorer().push(pieces, rows)
    scorer, scores, given_rows = Scorer(), [], 0
    for index, piece in enumerate(pieces):
        if index == cut:
            saved, scorer = scorer.state(), Scorer()
            scorer.restore(json.loads(json.dumps(saved)))
        # rows come in blocks, after their tokens
        come = index + 1 if index % 3 == (lag[0] if lag else 0) % 3 else given_rows
        scores += scorer.push([piece], rows[given_rows:come])
        given_rows = come
    scores += scorer.push((), rows[given_rows:])
    assert scores == whole
    if tokens:
        np.testing.assert_array_equal(scorer.row, rows[-1])


def test_a_scorer_refuses_what_it_did_not_save():
    with pytest.raises(SnapshotError, match="another --emit"):
        Scorer().restore({"next": {}})


def test_log_likelihoods_of_extreme_logits():
    row = np.array([1e4, -1e4, 1e4], np.float32)
    np.testing.assert_allclose(log_likelihoods(row), [-np.log(2), -2e4 - np.log(2), -np.log(2)])
    assert np.isnan(log_likelihoods(np.array([np.nan, 0], np.float32))).all()


def test_models_without_logits_of_the_next_token_are_refused(tmp_path):
    for make in TOYS.values():
        manifest = make().manifest
        assert not can_score(manifest)
        with pytest.raises(UsageError, match="first output is the logits"):
            require_logits(manifest)
    ahead = LanguageToy(5, lookahead=1).manifest
    with pytest.raises(UsageError, match="looks 1 tokens ahead"):
        require_logits(ahead)
    silent = streamssm.load(LanguageToy(7).write(tmp_path / "silent.onnx"))
    with pytest.raises(UsageError, match="does not say what its tokens stand for"):
        score(silent, "x")


# What is drawn.


@pytest.mark.parametrize("name", ["bytes", "llama3", "nucleotides"])
@pytest.mark.parametrize("block", [1, 4])
def test_greedy_continuation_takes_the_likeliest_token(toy, name, block):
    language, model = toy(name, block=block)
    prompt = "ACGTTGCAA" if name == "nucleotides" else "The fox"
    drawn = list(generate(model, prompt, 12, temperature=0))
    ids = [piece.token for piece in _tokens(model, prompt)]
    allowed = np.array([open_alphabet(model.file).known(t) for t in range(model.manifest.input.vocabulary)])
    for entry in drawn:
        row = language.reference(np.array(ids))[-1]
        assert row[entry.token] == pytest.approx(np.where(allowed, row, -np.inf).max(), abs=1e-4)
        assert entry.index == len(ids)
        ids.append(entry.token)
    assert len(drawn) == 12


def _tokens(model, text):
    encoder = open_alphabet(model.file).encoder()
    encoder.feed(text.encode())
    encoder.end(closing=False)
    return encoder.take(1 << 20)


def test_one_seed_gives_one_text_at_any_block(toy):
    texts = set()
    for block in (1, 4):
        _, model = toy("llama3", block=block)
        entries = list(generate(model, TEXT, 30, seed=5, temperature=0.8, top_k=40, top_p=0.95))
        texts.add(tuple(entry.token for entry in entries))
    assert len(texts) == 1
    assert texts != {tuple(entry.token for entry in generate(model, TEXT, 30, seed=6))}


def test_a_continuation_stops_at_a_token_that_ends_texts(toy):
    _, model = toy("nucleotides", end=(2, 3))
    drawn = [entry.token for entry in generate(model, "ACCA", 500, seed=1)]
    assert len(drawn) < 500
    assert drawn[-1] in (2, 3)
    assert not {2, 3} & set(drawn[:-1])


def test_an_empty_prompt_needs_a_token_that_starts_texts(toy):
    _, model = toy("llama3")  # which has one
    assert len(list(generate(model, "", 3))) == 3
    _, model = toy("bytes")
    with pytest.raises(InputError, match="the prompt is empty"):
        list(generate(model, b"", 3))


ROW = np.array([1.0, 3.0, 2.0, 3.0, -np.inf], np.float32)
ALL = np.ones(5, bool)


def shares(sampler: Sampler, allowed: np.ndarray = ALL) -> np.ndarray:
    return np.bincount([sampler.draw(ROW, allowed) for _ in range(4000)], minlength=5) / 4000


def test_draws_have_the_probabilities_of_the_options():
    weights = np.exp(np.array([1, 3, 2, 3, -np.inf]))
    np.testing.assert_allclose(shares(Sampler()), weights / weights.sum(), atol=0.03)
    np.testing.assert_allclose(shares(Sampler(temperature=2)), weights**0.5 / (weights**0.5).sum(), atol=0.03)
    np.testing.assert_allclose(shares(Sampler(top_k=2)), [0, 0.5, 0, 0.5, 0], atol=0.03)
    np.testing.assert_allclose(shares(Sampler(top_p=0.7)), [0, 0.5, 0, 0.5, 0], atol=0.03)
    assert shares(Sampler(top_k=1))[1] == shares(Sampler(top_p=0.1))[1] == 1  # the first of equals
    assert shares(Sampler(temperature=1e-300))[[1, 3]].sum() == 1
    assert shares(Sampler(temperature=0))[1] == 1
    only = np.array([True, False, True, False, True])
    np.testing.assert_allclose(
        shares(Sampler(), only)[[0, 2]], [1 / (1 + np.e), np.e / (1 + np.e)], atol=0.03
    )


def test_saved_random_numbers_continue():
    first, second = Sampler(seed=3), Sampler(seed=4)
    [first.draw(ROW, ALL) for _ in range(10)]
    second.restore(json.loads(json.dumps(first.state())))
    assert [first.draw(ROW, ALL) for _ in range(50)] == [second.draw(ROW, ALL) for _ in range(50)]
    with pytest.raises(SnapshotError, match="damaged"):
        second.restore({"state": "x"})


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": np.inf}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}, {"seed": -1}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampler(**options)


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(BackendError, match="nan"):
        Sampler().draw(np.full(5, np.nan, np.float32), ALL)


# What a file says about its tokens.


@pytest.mark.parametrize(
    ("vocabulary", "alphabet", "fields", "message"),
    [
        (200, "bytes", {}, "needs 256 tokens, there are 200"),
        (3, "nucleotides", {}, "needs 4 tokens, there are 3"),
        (5, "nucleotides", {"end": (5,)}, "end tokens"),
        (5, "runes", {}, "runes"),
    ],
)
def test_alphabets_that_do_not_fit_are_refused(tmp_path, vocabulary, alphabet, fields, message):
    path = LanguageToy(vocabulary, alphabet, **fields).write(tmp_path / "x.onnx")
    with pytest.raises(ManifestError, match=message):
        streamssm.load(path)


def test_a_named_tokenizer_must_be_there(tmp_path):
    model = streamssm.load(LanguageToy(9, "tokenizer").write(tmp_path / "x.onnx"))
    with pytest.raises(ModelFileError, match="names a tokenizer and holds none"):
        score(model, "x")


def test_the_hash_covers_the_tokenizer(tmp_path):
    path = LanguageToy(420, "tokenizer", content("gpt2").encode()).write(tmp_path / "x.onnx")
    data = bytearray(path.read_bytes())
    data[data.index(b"streamssm.tokenizer") + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="sha256"):
        streamssm.load(path)
