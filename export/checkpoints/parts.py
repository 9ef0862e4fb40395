"""Parts that many families share: the whole model around a stack, and ranks."""

from __future__ import annotations

from streamssm.export.checkpoints.family import Keys
from streamssm.export.layers import Embedding, Head, Sequential, StreamingLayer


def language_model(
    vocabulary: int,
    width: int,
    backbone: StreamingLayer,
    tied: bool,
    head_bias: bool = False,
    embedding_scale: float = 1.0,
) -> Sequential:
    """Tokens to logits. Parameters: ``embedding.weight``, ``backbone.*``, ``head.weight``."""
    embedding = Embedding(vocabulary, width, embedding_scale)
    head = Head(width, vocabulary, tied=embedding if tied else None, bias=head_bias)
    return Sequential({"embedding": embedding, "backbone": backbone, "head": head})


def whole_or_auto(config: Keys, name: str) -> int | str:
    """A rank: a whole number, or "auto" (which is also the default)."""
    return "auto" if name not in config or config.word(name) == "auto" else config.whole(name)
