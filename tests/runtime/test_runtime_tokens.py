"""A tokenizer on a stream: the same tokens as on the whole text, for every cut of its bytes."""

import functools
import itertools
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_tokenizers import HELD_BACK, LINES, MADE, content
from tokenizers import Tokenizer, normalizers
from tokenizers import pre_tokenizers as pre

from streamssm.alphabet import Bytes, Nucleotides, Piece
from streamssm.errors import InputError, ModelFileError
from streamssm.tokenizer import stages
from streamssm.tokenizer.characters import stands_alone, starts_anew
from streamssm.tokenizer.encoder import TextEncoder
from streamssm.tokenizer.library import TextTokenizer
from streamssm.tokenizer.packed import pack, unpack
from streamssm.tokenizer.pattern import Pattern, UnreadableError

FRAGMENTS = [
    *(
        "the",
        "The",
        " the",
        "this",
        "don't",
        "'s",
        "'",
        "'ll",
        "fox ",
        "def f(x):\n    return",
        "ſ",
        "x y",
        "x",
        " y",
    ),
    *(" ", "  ", "   ", " " * 30, "\n", "\n\n", " \n ", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\u200d"),
    *("1", "12", "3456", " 99", "½", "Ⅷ", ".", ",", "!?", "--", "<", ">", "=", "_", "__"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u0338",
        "ß",
        "İ",
        "Σ",
        "ﬁ",
        "ǅ",
        "ʰ",
        "漢字",
        "かな",
        "か\u3099",
        "。",
        "🙂",
        "👩‍👩‍👧",
        "🇩🇪",
    ),
    *("हिन्दी", "العربية", "ไทย", "가", "ᄀ", "ᅡ", "ᆨ", "한국", "\ufeff", "\x00", "\U0001fae8", "\U00011f02"),
    *(
        "<|endoftext|>",
        "<|end",
        "oftext|>",
        "<mask>",
        " <mask> ",
        "<b>",
        "<b>  ",
        "Q",
        " Q ",
        "xQ",
        "▁",
        "▁▁",
    ),
    *("[MASK]", "[MASK", "</s>", "<s>", "<0x0A>"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join)
SHARED = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def made(name: str) -> tuple[TextTokenizer, Tokenizer]:
    """Ours, and the library's own on whole texts."""
    whole = Tokenizer.from_str(content(name))
    whole.no_truncation()
    return TextTokenizer(content(name).encode()), whole


def tokenise(tokenizer: TextTokenizer, data: bytes, cuts: list[int]) -> list[Piece]:
    encoder, pieces = tokenizer.encoder(), []
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, stop in itertools.pairwise(places):
        encoder.feed(data[start:stop])
        pieces += encoder.take(1 << 20)
    encoder.end()
    return pieces + encoder.take(1 << 20)


@pytest.mark.parametrize("name", MADE)
@SHARED
@given(TEXTS, st.lists(st.integers(0, 400), max_size=8))
@example("", [])
@example("a", [])
@example(" ", [])
@example("🙂" * 3, list(range(12)))
@example("\n".join(LINES), list(range(0, 700, 3)))
def test_any_split_of_the_bytes_gives_the_tokens_of_the_whole(name, text, cuts):
    ours, whole = made(name)
    pieces = tokenise(ours, text.encode(), cuts)
    assert [piece.token for piece in pieces] == whole.encode(text).ids
    assert pieces == tokenise(ours, text.encode(), [])


@pytest.mark.parametrize("name", MADE)
@settings(SHARED, max_examples=40)
@given(TEXTS)
def test_single_bytes_give_the_tokens_of_the_whole(name, text):
    ours, whole = made(name)
    pieces = tokenise(ours, text.encode(), list(range(len(text.encode()))))
    assert [piece.token for piece in pieces] == whole.encode(text).ids


@pytest.mark.parametrize("name", MADE)
@settings(SHARED, max_examples=40)
@given(TEXTS, st.integers(0, 100), st.integers(0, 100))
def test_a_saved_encoder_continues_in_the_middle_of_a_character(name, text, cut, taken):
    ours, whole = made(name)
    data = text.encode()
    first = ours.encoder()
    first.feed(data[:cut])
    pieces = first.take(taken)
    rest = ours.encoder()
    rest.restore(json.loads(json.dumps(first.state())))
    rest.feed(data[cut:])
    rest.end()
    pieces += rest.take(1 << 20)
    assert [piece.token for piece in pieces] == whole.encode(text).ids


@pytest.mark.parametrize("name", MADE)
def test_little_is_held_back(name):
    ours, _ = made(name)
    encoder, most = ours.encoder(), 0
    for line in LINES[:4]:
        for byte in f"{line} and so on. ".encode():
            encoder.feed(bytes([byte]))
            most = max(most, len(encoder.state()["text"]))
    assert (most > 100) == (name in HELD_BACK)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "llama2", "neox"])
def test_texts_of_the_tokens_are_the_text(name):
    ours, _ = made(name)
    for line in LINES:
        pieces = tokenise(ours, line.encode(), [7, 20])
        assert "".join(piece.text for piece in pieces) == line
        assert sum(piece.size for piece in pieces) == len(line.encode())


@pytest.mark.parametrize("name", MADE)
@settings(SHARED, max_examples=40)
@given(TEXTS)
@example("the👩\u200d👩\u200d👧thethe6;the")  # a row of unknown tokens between two words
@example("the" + " 👩" * 20 + " the")
def test_decoded_one_by_one_is_decoded_together(name, text):
    ours, whole = made(name)
    tokens = whole.encode(text).ids
    decoder = ours.decoder()
    found = "".join(decoder.add(token) for token in tokens) + decoder.end()
    assert found == whole.decode(tokens, skip_special_tokens=True)


def test_a_continuation_keeps_the_space_before_its_first_word():
    for name in ("llama2", "mistral", "unigram", "gpt2"):
        ours, whole = made(name)
        before, both = (
            whole.encode(text, add_special_tokens=False).ids for text in ("the fox", "the fox over")
        )
        decoder = ours.decoder(before)
        assert "".join(map(decoder.add, both[len(before) :])) + decoder.end() == " over"


def test_what_is_not_utf8_is_refused_with_its_place():
    encoder = made("gpt2")[0].encoder()
    encoder.feed("né".encode()[:2])
    with pytest.raises(InputError, match=r"byte 1 of the text is 0xc3.*iconv"):
        encoder.feed(b"x")
    encoder = made("gpt2")[0].encoder()
    encoder.feed(b"some words \xf0\x9f")
    with pytest.raises(InputError, match="byte 11 of the text is 0xf0"):
        encoder.end()


def test_a_tokenizer_that_cannot_be_cut_waits_to_a_limit():
    ours, _ = made("unigram_unsplit")
    encoder = TextEncoder(ours, held=50)
    encoder.feed(b"the fox " * 6)
    assert not encoder.take(10)
    with pytest.raises(InputError, match=r"64 characters up to byte 64 hold no place.*at most 50"):
        encoder.feed(b"the fox " * 2)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("o ", True), ("o\n", True), (".\n", False), (" o", False), ("12", False), ("a1", True), ("字。", True)],
)
def test_where_llama3_may_be_cut(text, allowed):
    assert made("llama3")[0].cuts.allowed(text[0], text[1], "") is allowed


def test_normalisation_waits_for_marks_that_may_follow():
    cuts = made("neox")[0].cuts
    assert not cuts.allowed(".", "e", "")
    assert cuts.allowed(".", "e", "x")
    assert not cuts.allowed(".", "e", "\u0301")
    assert cuts.allowed("e", " ", "")
    assert not cuts.allowed("e", "\u0301", "x")


@pytest.mark.parametrize(
    "source",
    [
        r"^a",
        r"a$",
        r"\bx",
        r"(?<=a)b",
        "a*",
        r"(a)\1",
        "(?i:ss)",
        "(?i:ß)",
        "a{0}",
        "(a",
        "a)",
        "[a",
        r"\p{L",
        "*",
    ],
)
def test_patterns_that_cannot_be_read_are_refused(source):
    with pytest.raises(UnreadableError):
        Pattern(source, stages.accepts)


@pytest.mark.parametrize(
    ("source", "seen", "unseen"),
    [
        ("ab|c", ["ab"], ["bc", "ca", "aa"]),
        ("[a-c]{2,3}x?", ["ab", "cc", "ax"], ["xa", "xx"]),
        (r"\s+(?!\S)|\s", ["  ", " x"], ["x ", "xx"]),
        ("(?:ab)+?c|d{1}", ["ab", "ba", "bc"], ["cd", "dd", "ac"]),
        ("(?i:x)y|(?>pq)r", ["Xy", "xy", "pq", "qr"], ["yx", "XX"]),
        ("(?i)x|yz", ["YZ", "yZ"], ["xy"]),
        (r"[^\]\[a]b|\{c", ["xb", "{c"], ["ab", "]b", "[b", "c{"]),
    ],
)
def test_what_a_pattern_sees(source, seen, unseen):
    pattern = Pattern(source, stages.accepts)
    assert all(pattern.sees(*pair) for pair in seen)
    assert not any(pattern.sees(*pair) for pair in unseen)


def test_a_pattern_that_need_not_match_ends_no_piece():
    pattern = Pattern("ab|c", stages.accepts)
    assert pattern.surely_matches("c")
    assert not pattern.surely_matches("b")
    assert pattern.may_match("b")
    assert not Pattern("c(?=x)", stages.accepts).surely_matches("c")


@pytest.mark.parametrize("kind", ["UnicodeScripts", "FixedLength", "SomethingNew"])
def test_stages_of_which_nothing_is_known_are_never_cut(kind):
    assert stages.pre_tokeniser({"type": kind})("a", " ") == stages.MIXED
    assert stages.normaliser({"type": kind})("a", " ") == stages.MIXED
    assert stages.model({"type": kind})("a", " ") == stages.MIXED


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@SHARED
@given(st.text(max_size=6), st.text(max_size=6))
def test_text_may_be_normalised_in_two_parts_where_a_character_starts_anew(form, left, right):
    normalise = getattr(normalizers, form)().normalize_str
    if right and starts_anew(right[0]) and all(starts_anew(c) for c in left[-1:]):
        assert normalise(left + right) == normalise(left) + normalise(right)


def test_marks_and_jamo_neither_start_anew_nor_stand_alone():
    for char in "\u0301\u3099ᅡᆨ\u0378\ud7ff\u200d\uff9e":
        assert not stands_alone(char)
    for char in "\u0301\u3099ᅡᆨ\u0378\uff9e":
        assert not starts_anew(char)
    assert all(starts_anew(char) for char in "a 字é한")


@pytest.mark.parametrize("name", ["Split", "Digits", "Punctuation", "Metaspace"])
@SHARED
@given(st.text("a 1.,▁\n", max_size=8), st.text("a 1.,▁\n", max_size=8))
def test_pieces_end_where_a_stage_says_so(name, left, right):
    for component in {
        "Split": [
            pre.Split(pattern, behaviour)
            for pattern in (" ", "1")
            for behaviour in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
        ],
        "Digits": [pre.Digits(True), pre.Digits(False)],
        "Punctuation": [pre.Punctuation(b) for b in ("isolated", "merged_with_next", "contiguous")],
        "Metaspace": [pre.Metaspace(prepend_scheme="never")],
    }[name]:
        stage = stages.pre_tokeniser(json.loads(component.__getstate__()))
        if left and right and stage(left[-1], right[0]).verdict is stages.Verdict.APART:
            pieces = [text for part in (left, right) for text, _ in component.pre_tokenize_str(part)]
            assert [text for text, _ in component.pre_tokenize_str(left + right)] == pieces


def test_a_packed_tokenizer():
    data = content("gpt2").encode()
    packed = pack(data).encode()
    assert unpack(packed) == data
    assert len(packed) < len(data)
    for damaged in (packed[:-8], b"!" + packed, b"", b"AAAA", packed[:100] + b"AAAA" + packed[104:]):
        with pytest.raises(ModelFileError):
            unpack(damaged)
    with pytest.raises(ModelFileError, match="cannot be read"):
        TextTokenizer(b"{}")


def test_a_packed_tokenizer_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("streamssm.tokenizer.packed.LARGEST", 1 << 16)
    with pytest.raises(ModelFileError, match="larger than 65536"):
        unpack(pack(bytes(1 << 20)).encode())


@SHARED
@given(st.binary(max_size=40), st.integers(0, 40))
def test_bytes_are_their_own_tokens(data, cut):
    encoder = Bytes().encoder()
    encoder.feed(data[:cut])
    first = encoder.take(3)
    encoder, saved = Bytes().encoder(), encoder.state()
    encoder.restore(json.loads(json.dumps(saved)))
    encoder.feed(data[cut:])
    encoder.end()
    pieces = first + encoder.take(100)
    assert bytes(piece.token for piece in pieces) == data
    text = "".join(piece.text for piece in pieces)
    assert data.decode(errors="replace").startswith(text)  # a half character at the end has no text
    decoder = Bytes().decoder(data[:cut])
    rest = "".join(decoder.add(byte) for byte in data[cut:]) + decoder.end()
    assert data.decode(errors="replace").endswith(rest)


def test_nucleotides():
    encoder = Nucleotides(5).encoder()
    encoder.feed(b"ACGT acgu\r\n")
    encoder.feed(b"NnRy")
    assert [piece.token for piece in encoder.take(99)] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 4, 4]
    with pytest.raises(InputError, match=r"byte 16 of the sequence is '>'.*--input-format fasta"):
        encoder.feed(b"A>chr1")
    with pytest.raises(InputError, match="byte 0 of the sequence is 'N'; this model reads A, C, G, T, U; "):
        Nucleotides(4).encoder().feed(b"N")
    decoder = Nucleotides(5).decoder()
    assert "".join(map(decoder.add, range(6))) + decoder.end() == "ACGTN"
