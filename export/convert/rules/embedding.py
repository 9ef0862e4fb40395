"""Token embeddings: item by item, and the place where the vocabulary is known."""

from __future__ import annotations

import torch

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind
from streamssm.export.convert.planner import Outcome, Planner


def embedding(planner: Planner, call: Call) -> Outcome | None:
    """Note the size of the table that the input's own tokens go through."""
    given = bind(("input", "weight"), call.args, call.kwargs)
    if planner.tokens is not None and torch.equal(given["input"], planner.tokens):
        planner.vocabulary = planner.vocabulary or given["weight"].shape[0]
    return None


RULES = {"embedding": embedding}
