"""Small models in the agreed file form, built by hand, with numpy references.

Each toy is a graph in ONNX text, a manifest and a reference that computes, from a whole
sequence ``x [T, *shape]`` in float64, what a flushed stream must have returned.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.parser
import safetensors.numpy

from streamssm.manifest import (
    DIGEST_PLACEHOLDER,
    FORMAT,
    GOLDEN_KEY,
    MANIFEST_KEY,
    Input,
    Manifest,
    Output,
    StateTensor,
)
from streamssm.onnx_file import seal

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

# h_t = 0.9 h_{t-1} + 0.1 x_t along axis 1; the name of the sequence is filled in
EMA = """
  {y}_last, {y} = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
    body = step (float[B, {d}] before, float[B, {d}] item) => (float[B, {d}] after, float[B, {d}] out) {{
      keep = Constant <value = float {{0.9}}> ()
      take = Constant <value = float {{0.1}}> ()
      kept = Mul (before, keep)
      taken = Mul (item, take)
      after = Add (kept, taken)
      out = Identity (after)
    }}> ({h}, {x})
"""


def ema(x: np.ndarray) -> np.ndarray:
    """The recurrence above over axis 0, from zero."""
    h, out = np.zeros(x.shape[1:]), []
    for item in x:
        h = np.float32(0.9) * h + np.float32(0.1) * item
        out.append(h)
    return np.array(out).reshape(x.shape)


@dataclass
class Toy:
    """A model to be written, and what it computes."""

    graph: str
    manifest: Manifest
    reference: Callable[[np.ndarray], dict[str, np.ndarray]]
    golden: dict[str, np.ndarray] = field(default_factory=dict)

    def random(self, items: int, rng: np.random.Generator, batch: int | None = None) -> np.ndarray:
        """Input items of the right shape and dtype."""
        spec = self.manifest.input
        shape = (*(() if batch is None else (batch,)), items, *spec.shape)
        if spec.kind == "tokens":
            return rng.integers(0, spec.vocabulary, shape)
        return rng.standard_normal(shape).astype(np.float32)

    def proto(self) -> onnx.ModelProto:
        """The model without metadata, checked."""
        model = onnx.parser.parse_model(HEADER + self.graph)
        onnx.checker.check_model(model, full_check=True)
        return model

    def data(self, **changes: Any) -> bytes:
        """The file; ``changes`` replace fields of the manifest."""
        model = self.proto()
        manifest = msgspec.structs.replace(self.manifest, **changes)
        metadata = {MANIFEST_KEY: manifest.encode()}
        if self.golden:
            metadata[GOLDEN_KEY] = base64.b64encode(safetensors.numpy.save(self.golden)).decode()
        onnx.helper.set_model_props(model, metadata)
        return seal(model.SerializeToString(deterministic=True))

    def write(self, folder: Path, **changes: Any) -> Path:
        """Write the file into ``folder``."""
        path = folder / f"{self.manifest.name}.onnx"
        path.write_bytes(self.data(**changes))
        return path


def manifest(
    name: str, spec: Input, outputs: list[Output], states: list[StateTensor], **fields: Any
) -> Manifest:
    fields = {"block": spec.hop, **fields}
    return Manifest(
        format=FORMAT,
        name=name,
        sha256=DIGEST_PLACEHOLDER,
        producer="toy",
        input=spec,
        outputs=tuple(outputs),
        states=tuple(states),
        **fields,
    )


def state(name: str, *shape: int, dtype: Any = "float32") -> StateTensor:
    return StateTensor(name, f"next_{name}", shape, dtype)


def ema_toy() -> Toy:
    """Features [2]; an EMA, a running count and a state without elements."""
    graph = f"""ema (float[B, T, 2] x, float[B, 2] h, int64[B] count, float[B, 0, 2] none)
    => (float[B, T, 2] y, float[B, 2] next_h, int64[B] next_count, float[B, 0, 2] next_none) {{
    {EMA.format(x="x", h="h", y="y", d=2)}
      next_h = Identity (y_last)
      time = Shape <start = 1, end = 2> (x)
      next_count = Add (count, time)
      next_none = Identity (none)
    }}"""
    spec = Input("x", "features", "float32", (2,), rate=50.0)
    states = [state("h", 2), state("count", dtype="int64"), state("none", 0, 2)]
    return Toy(
        graph,
        manifest("ema", spec, [Output("y", "features", (2,))], states, block=4),
        lambda x: {"y": ema(x.astype(np.float64))},
    )


def frames_toy() -> Toy:
    """Samples; frames of 6 every 4 through a small filter bank, then an EMA: ratio 1/4."""
    bank = (np.arange(18).reshape(3, 1, 6) % 7 - 3) / 4.0
    values = ", ".join(str(v) for v in bank.ravel())
    graph = f"""frames (float[B, T] audio, float[B, 2] tail, float[B, 3] h)
    => (float[B, F, 3] y, float[B, 2] next_tail, float[B, 3] next_h) {{
      full = Concat <axis = 1> (tail, audio)
      one = Constant <value = int64[1] {{1}}> ()
      wide = Unsqueeze (full, one)
      bank = Constant <value = float[3, 1, 6] {{{values}}}> ()
      bands = Conv <strides = [4]> (wide, bank)
      items = Transpose <perm = [0, 2, 1]> (bands)
    {EMA.format(x="items", h="h", y="y", d=3)}
      next_h = Identity (y_last)
      from = Constant <value = int64[1] {{-2}}> ()
      to = Constant <value = int64[1] {{1000000000}}> ()
      next_tail = Slice (full, from, to, one)
    }}"""
    spec = Input("audio", "samples", "float32", (), rate=16000.0, hop=4)

    def reference(x: np.ndarray) -> dict[str, np.ndarray]:
        count = -(-len(x) // 4)
        full = np.concatenate([np.zeros(2), x, np.zeros(4 * count - len(x))])
        return {
            "y": ema(np.array([bank[:, 0] @ full[4 * f : 4 * f + 6] for f in range(count)]).reshape(-1, 3))
        }

    outputs = [Output("y", "features", (3,), (1, 4))]
    return Toy(
        graph, manifest("frames", spec, outputs, [state("tail", 2), state("h", 3)], block=8), reference
    )


def ahead_toy() -> Toy:
    """Features [2]; a centred filter of 5 taps: look-ahead 2."""
    graph = """ahead (float[B, T, 2] x, float[B, 4, 2] past) => (float[B, T, 2] y, float[B, 4, 2] next_past) {
      full = Concat <axis = 1> (past, x)
      swapped = Transpose <perm = [0, 2, 1]> (full)
      taps = Constant <value = float[2, 1, 5] {1, 2, 4, 3, -1, 2, 2, 1, 0.5, 3}> ()
      filtered = Conv <group = 2> (swapped, taps)
      y = Transpose <perm = [0, 2, 1]> (filtered)
      from = Constant <value = int64[1] {-4}> ()
      to = Constant <value = int64[1] {1000000000}> ()
      one = Constant <value = int64[1] {1}> ()
      next_past = Slice (full, from, to, one)
    }"""
    taps = np.array([[1, 2, 4, 3, -1], [2, 2, 1, 0.5, 3]])

    def reference(x: np.ndarray) -> dict[str, np.ndarray]:
        full = np.concatenate([np.zeros((2, 2)), x, np.zeros((2, 2))])
        return {"y": np.array([(taps.T * full[t : t + 5]).sum(0) for t in range(len(x))]).reshape(-1, 2)}

    spec = Input("x", "features", "float32", (2,), rate=100.0)
    outputs = [Output("y", "features", (2,))]
    return Toy(
        graph, manifest("ahead", spec, outputs, [state("past", 4, 2)], lookahead=2, block=3), reference
    )


def tokens_toy() -> Toy:
    """Tokens of a vocabulary of 5: an embedding, then an EMA."""
    table = np.array([[0.0, 1], [1, 0], [-1, 2], [3, -2], [0.5, 0.25]])
    values = ", ".join(str(v) for v in table.ravel())
    graph = f"""tokens (int64[B, T] ids, float[B, 2] h) => (float[B, T, 2] logits, float[B, 2] next_h) {{
      table = Constant <value = float[5, 2] {{{values}}}> ()
      rows = Gather (table, ids)
    {EMA.format(x="rows", h="h", y="logits", d=2)}
      next_h = Identity (logits_last)
    }}"""
    spec = Input("ids", "tokens", "int64", (), vocabulary=5)
    outputs = [Output("logits", "logits", (2,))]
    return Toy(graph, manifest("tokens", spec, outputs, [state("h", 2)]), lambda x: {"logits": ema(table[x])})


def pair_toy() -> Toy:
    """Two outputs of unlike ratio and a look-ahead of 6 that is no multiple of the hop of 4:
    ``same`` is the input 6 items later, ``sums`` the sum of every 4 items."""
    graph = """pair (float[B, T, 1] x, float[B, 6, 1] past) =>
      (float[B, T, 1] same, float[B, F] sums, float[B, 6, 1] next_past) {
      full = Concat <axis = 1> (past, x)
      zero = Constant <value = int64[1] {0}> ()
      minus6 = Constant <value = int64[1] {-6}> ()
      far = Constant <value = int64[1] {1000000000}> ()
      one = Constant <value = int64[1] {1}> ()
      same = Slice (full, zero, minus6, one)
      next_past = Slice (full, minus6, far, one)
      split = Constant <value = int64[3] {0, -1, 4}> ()
      fours = Reshape (same, split)
      two = Constant <value = int64[1] {2}> ()
      sums = ReduceSum <keepdims = 0> (fours, two)
    }"""

    def reference(x: np.ndarray) -> dict[str, np.ndarray]:
        # frame f covers raw items 4f-6 .. 4f-3; frame 0 belongs to item -3 and is dropped
        count = -(-len(x) // 4)
        full = np.concatenate([np.zeros(2), x[:, 0], np.zeros(8)])
        return {"same": x, "sums": np.array([full[4 * f : 4 * f + 4].sum() for f in range(count)])}

    spec = Input("x", "features", "float32", (1,), rate=10.0, hop=4)
    outputs = [Output("same", "features", (1,)), Output("sums", "features", (), (1, 4))]
    return Toy(graph, manifest("pair", spec, outputs, [state("past", 6, 1)], lookahead=6, block=4), reference)


def twice_toy() -> Toy:
    """No state at all, and two frames for every item."""
    graph = """twice (float[B, T] x) => (float[B, F] y) {
      axis = Constant <value = int64[1] {2}> ()
      column = Unsqueeze (x, axis)
      doubled = Concat <axis = 2> (column, column)
      flat = Constant <value = int64[2] {0, -1}> ()
      y = Reshape (doubled, flat)
    }"""
    spec = Input("x", "features", "float32", ())
    outputs = [Output("y", "features", (), (2, 1))]
    return Toy(graph, manifest("twice", spec, outputs, []), lambda x: {"y": np.repeat(x, 2)})


TOYS: dict[str, Callable[[], Toy]] = {
    "ema": ema_toy,
    "frames": frames_toy,
    "ahead": ahead_toy,
    "tokens": tokens_toy,
    "pair": pair_toy,
    "twice": twice_toy,
}


def named(toy: Toy, y: Any) -> dict[str, np.ndarray]:
    """Results of a push as a dict, for models with one output and with several."""
    return y if isinstance(y, dict) else {toy.manifest.outputs[0].name: y}


def joined(toy: Toy, parts: list[Any], axis: int = 0) -> dict[str, np.ndarray]:
    """The results of several pushes, concatenated along time."""
    dicts = [named(toy, part) for part in parts]
    return {name: np.concatenate([part[name] for part in dicts], axis) for name in dicts[0]}


def same_bytes(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two sets of results are equal bit by bit."""
    return a.keys() == b.keys() and all(
        a[k].shape == b[k].shape and a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )
