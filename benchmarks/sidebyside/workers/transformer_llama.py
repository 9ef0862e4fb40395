"""The small transformer in llama.cpp: its cache is filled by real tokens, in batches of 512."""

from __future__ import annotations

import time

import llama_cpp as llama
import numpy as np

from sidebyside.shapes import draw_tokens
from sidebyside.wire import Advance, Call, serve
from sidebyside.workers.llamacpp import BATCH, LlamaCpp, finish_gguf, start_gguf
from sidebyside.workers.transformer import FEED_FORWARD, HEADS, THETA, draw


class TransformerLlama(LlamaCpp):
    """float32 weights, float16 cache (its default, and the smaller one)."""

    context_items = 2**18

    def prepare(self) -> None:
        path = self.file(".gguf")
        if path.exists():
            return
        shape, draft = self.shape, path.with_suffix(".draft")
        writer = start_gguf(str(draft), "llama", shape, 2**20)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS)
        writer.add_rope_dimension_count(shape.d_model // HEADS)
        writer.add_rope_freq_base(THETA)
        for name, value in draw(shape).items():
            writer.add_tensor(name, value)
        finish_gguf(writer)
        draft.replace(path)

    def live(self) -> tuple[Advance, Call]:
        self.reset(1)
        tokens = draw_tokens(self.shape, 65_536)

        def advance(items: int, end: float) -> int:
            done = 0
            while done < items and time.monotonic() < end:
                count = min(BATCH, items - done)
                self.push(np.resize(tokens, count), True)
                done += count
            return done

        def step() -> object:
            return self.push(tokens[self.position % len(tokens)][None], True)

        return advance, step

    def facts(self) -> dict[str, object]:
        return {"context": llama.llama_n_ctx(self.context), "threads": 1}


if __name__ == "__main__":
    serve(TransformerLlama)
