"""A hand-made model of nucleotides: whether a read is rich in G and C, as logits that settle base by base."""

from __future__ import annotations

from toy_models import EMA, Toy, manifest, state

from streamssm.manifest import Input, Output

LABELS = ("rich", "poor")


def reads_toy(**changes: object) -> Toy:
    # tokens are A, C, G, T, N; a G or C speaks for the first label
    graph = f"""reads (int64[B, T] bases, float[B, 2] h) => (float[B, T, 2] logits, float[B, 2] next_h) {{
      table = Constant <value = float[5, 2] {{-4, 4, 4, -4, 4, -4, -4, 4, 0, 0}}> ()
      votes = Gather (table, bases)
    {EMA.format(x="votes", h="h", y="logits", d=2)}
      next_h = Identity (logits_last)
    }}"""
    fields = {"block": 4, "license": "Apache-2.0", "description": "a toy", **changes}
    spec = Input("bases", "tokens", "int64", (), vocabulary=5, alphabet="nucleotides")
    outputs = [Output("logits", "logits", (2,), (1, 1), LABELS)]
    return Toy(graph, manifest("reads", spec, outputs, [state("h", 2)], **fields), lambda x: {})
