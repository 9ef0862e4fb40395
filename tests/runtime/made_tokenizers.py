"""Tokenizers of every kind that published models use, trained on a few lines, in this process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

LINES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 12345 o'clock -- we'll see.",
    "the the the then there these  those   this\n\nthat   \n  other\tthings. 2024-01-31 at 3,141.59!",
    "Grüße aus Köln: naïve café, Ελληνικά και русский текст. 漢字かな交じり文、日本語。 한국어 텍스트 🙂🙃",
    "def f(x):\n    return x + 1\n\n\nif __name__ == '__main__':\n        print(f(10))\r\n",
    "हिन्दी पाठ العربية نص ไทย e\u0301e\u0301 ﬁne ½ Ⅷ",
]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(pre_tokenizer: Any, **options: Any) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    return _bytes(pre.ByteLevel(add_prefix_space=False))


def gpt2_prefix_space() -> Tokenizer:
    tokenizer = _bytes(pre.ByteLevel(add_prefix_space=True))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def neox() -> Tokenizer:
    """NFC, and runs of spaces as added tokens that are matched after it."""
    tokenizer = _bytes(pre.ByteLevel(add_prefix_space=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 25)])
    return tokenizer


def llama3() -> Tokenizer:
    split = pre.Split(Regex(LLAMA3), "isolated")
    tokenizer = _bytes(pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]),
        ]
    )
    return tokenizer


def o200k() -> Tokenizer:
    split = pre.Split(Regex(O200K), "removed", invert=True)
    return _bytes(pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]))


def falcon() -> Tokenizer:
    parts = [pre.Punctuation("contiguous"), pre.ByteLevel(add_prefix_space=False), pre.Digits(False)]
    return _bytes(pre.Sequence([*parts, pre.Split(Regex("[0-9][0-9][0-9]"), "isolated")]))


def starcoder() -> Tokenizer:
    return _bytes(pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)]))


def _sentences() -> Tokenizer:
    """BPE on characters, with bytes for those that have no token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="always")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        limit_alphabet=60,
        special_tokens=["<unk>", "<s>", "</s>", *fallback],
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    replaced = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(replaced)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama2() -> Tokenizer:
    """No pre-tokeniser at all: the whole text is one word."""
    tokenizer = _sentences()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    return tokenizer


def llama2_nfc() -> Tokenizer:
    """What a character becomes depends on the mark that follows it, and merges depend on that."""
    tokenizer = llama2()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), tokenizer.normalizer])
    return tokenizer


def llama2_ignoring_merges() -> Tokenizer:
    """A part of the text may be in the vocabulary, though merges never make it of the whole."""
    tokenizer = llama2()
    tokenizer.model.ignore_merges = True
    return tokenizer


def mistral() -> Tokenizer:
    tokenizer = _sentences()
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = _sentences()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 8)])
    tokenizer.add_tokens([AddedToken("▁" * n, normalized=False) for n in range(2, 8)])
    return tokenizer


def unigram() -> Tokenizer:
    """T5 and XLM-R without their table: NFKC, runs of spaces joined, words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def unigram_unsplit() -> Tokenizer:
    """The best path over the whole text: it cannot be cut."""
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre.Metaspace(split=False)
    return tokenizer


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=260, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    tokenizer.enable_truncation(8)
    return tokenizer


def awkward() -> Tokenizer:
    """Added tokens with every flag, and a head that gets a space after each of them."""
    tokenizer = gpt2_prefix_space()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken("<b>", rstrip=True), AddedToken("Q", single_word=True)])
    tokenizer.add_tokens([AddedToken("the", single_word=True), AddedToken("x y", normalized=True)])
    return tokenizer


def accents() -> Tokenizer:
    """Letters lose case and accents; the ends of the text lose their spaces."""
    tokenizer = gpt2()
    steps = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace("--", "—")])
    return tokenizer


def stripped() -> Tokenizer:
    """Spaces are tokens, but not at the ends of the text."""
    tokenizer = _bytes(pre.Sequence([pre.Split(" ", "isolated"), pre.ByteLevel(add_prefix_space=False)]))
    tokenizer.normalizer = normalizers.Strip()
    return tokenizer


def unreadable() -> Tokenizer:
    """A regular expression that looks behind."""
    split = pre.Split(Regex(r"(?<=\p{L})\p{N}+|\p{L}+"), "isolated")
    return _bytes(pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]))


def ignoring_merges() -> Tokenizer:
    """Whole words of the vocabulary are taken before any merge."""
    tokenizer = llama3()
    tokenizer.model.ignore_merges = True
    return tokenizer


def whitespace_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre.Sequence([pre.Whitespace(), pre.CharDelimiterSplit("_"), pre.Digits(True)])
    tokenizer.train_from_iterator(LINES, trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False))
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made
    for made in (
        *(gpt2, gpt2_prefix_space, neox, llama3, o200k, falcon, starcoder, llama2, mistral, gemma, unigram),
        *(unigram_unsplit, bert, awkward, accents, unreadable, ignoring_merges, whitespace_words),
        *(llama2_nfc, llama2_ignoring_merges, stripped),
    )
}
#: those that are held back to the end, whatever the text
HELD_BACK = {"unigram_unsplit", "unreadable", "llama2_ignoring_merges"}


@functools.cache
def content(name: str) -> str:
    """The tokenizer.json of one of them: trained once, for training is not the same every time."""
    return MADE[name]().to_str()
